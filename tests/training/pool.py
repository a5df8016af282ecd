"""Processes that stay, to serve as the ranks of one small run after another."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist

LIMIT = 60  # seconds; a rank that dies must end the others within a minute
PATIENCE = 1000  # seconds for an answer: compiling takes minutes where others use the cores too


class Pool:
    """`run(function, ranks=2, ...)` calls a function of a module in that many processes, which find each other as
    torchrun's do."""

    def __init__(self, size: int) -> None:
        # one process imports PyTorch and all that the checks need, and is copied
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.training.rank_checks"])
        self.workers = [self._start() for _ in range(size)]

    def _start(self) -> tuple[multiprocessing.Process, Connection]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def run(self, function: Callable[..., Any], ranks: int, *arguments: Any, **keywords: Any) -> list[Any]:
        """What the function returned on each rank; where it raised, the exception (its type's name and its message);
        None for a rank that died."""
        # this process holds the ranks' store, as torchrun's does: a port that was free just now may be taken
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        here = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
        answers = []
        try:
            for rank in range(ranks):
                environment = here | {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_USE_AGENT_STORE": True}
                strings = {name: str(value) for name, value in environment.items()}
                self.workers[rank][1].send((strings, function, arguments, keywords))
            for rank in range(ranks):
                process, connection = self.workers[rank]
                try:
                    if not connection.poll(PATIENCE):
                        process.kill()
                    answers.append(connection.recv())
                except (EOFError, ConnectionResetError):
                    process.join(5)
                    answers.append(None)
                    self.workers[rank] = self._start()
        except BaseException:  # the time limit of a test: who still works on this run would answer in the next
            for rank in range(ranks):
                self.workers[rank][0].kill()
                self.workers[rank][0].join(5)
                self.workers[rank] = self._start()
            raise
        return answers

    def close(self) -> None:
        for process, connection in self.workers:
            connection.close()
            process.join(5)
            process.kill()


def _serve(connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from tests.training.support import register_tiny
    from tvmatch.training.ranks import leave_ranks

    torch.set_num_threads(1)
    register_tiny()
    while True:
        try:
            environment, function, arguments, keywords = connection.recv()
        except EOFError:
            return
        os.environ.update(environment)
        try:
            answer = function(*arguments, **keywords)
        except BaseException as error:
            traceback.print_exc()
            answer = f"{type(error).__name__}: {error}"
        if dist.is_initialized():  # after an error the program itself would end here
            leave_ranks()
        connection.send(answer)
