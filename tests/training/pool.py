"""Processes that stay, to as the ranks of one small run after another."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(ranks):
            here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
            environment = {name: str(value) for name, value in here.items()} | {"MASTER_PORT": str(port)}
            self.workers[rank][1].send((environment, function, arguments, keywords))
        answers = []
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
        return answers

    def close(self) -> None:
        for process, connection in self.workers:
            connection.close()
            process.join(5)
            process.kill()


def _serve(connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    from tests.training.support import register_tiny

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
            dist.destroy_process_group()
        connection.send(answer)
