"""SIGKILL at random moments: what is continued is whole, and ends with the bits of an undisturbed run."""

import multiprocessing
import os
import random
import socket
import time
from pathlib import Path

import pytest

from tests.training.pool import LIMIT, PATIENCE
from tests.training.rank_checks import config
from tests.training.support import assert_same_bits, register_tiny
from tvmatch.training.checkpoint import list_checkpoints, read_checkpoint
from tvmatch.training.config import TrainConfig

STEPS = 12
# a checkpoint after every step, so that many kills fall into a save
OPTIONS = {"steps": STEPS, "checkpoint_every": 1, "keep_checkpoints": 2, "flip": True}


def train(environment: dict[str, str], options: TrainConfig) -> None:
    """One process of a run."""
    import torch

    from tvmatch.training import loop

    torch.set_num_threads(1)
    register_tiny()
    os.environ.update(environment)
    loop.train(options, show=False)


def start(options: TrainConfig, ranks: int) -> list[multiprocessing.Process]:
    """The processes of a run, copies of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.rank_checks"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        environment = where | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        processes.append(context.Process(target=train, args=(environment, options), daemon=True))
        processes[-1].start()
    return processes


def complete(options: TrainConfig, ranks: int) -> float:
    """A run to its end; the seconds that it took."""
    began = time.monotonic()
    processes = start(options, ranks)
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    return time.monotonic() - began


def kills(folder: Path, strategy: str, ranks: int, count: int) -> tuple[int, int, int]:
    """Kill runs `count` times, at moments spread over their length; the runs that ended, the kills while a checkpoint
    was written, and those while one was removed."""
    options = config(folder / "undisturbed", strategy=strategy, **OPTIONS)
    complete(options, ranks)  # imports what comes first
    length = complete(config(folder / "again", strategy=strategy, **OPTIONS), ranks)
    assert_same_bits(folder / "undisturbed", folder / "again")
    chance, killed, ended, saving, removing = random.Random(0), 0, 0, 0, 0
    while killed < count:
        run = folder / f"run {ended}"
        processes = start(config(run, strategy=strategy, **OPTIONS), ranks)
        end = time.monotonic() + chance.uniform(0.1, 1.0) * length
        while time.monotonic() < end and any(process.is_alive() for process in processes):
            time.sleep(0.001)
        alive = [process.is_alive() for process in processes]
        for process in processes:
            process.kill()
        for process in processes:
            process.join(LIMIT)
        left = list_checkpoints(run)
        if all(alive):
            killed += 1
            last = int(left[-1].name[5:]) if left else 0
            steps = [int(path.name[6:14]) for path in (run / "checkpoints").glob(".step_*.tmp")]
            saving += any(step > last for step in steps)
            removing += any(step < last for step in steps)
        for path in left:  # whole, each of them
            assert len(read_checkpoint(path)) > 100
        if left and left[-1].name == f"step_{STEPS:08d}":
            assert_same_bits(folder / "undisturbed", run)
            ended += 1
    run = folder / f"run {ended}"
    if not list_checkpoints(run) or list_checkpoints(run)[-1].name != f"step_{STEPS:08d}":
        complete(config(run, strategy=strategy, **OPTIONS), ranks)
    assert_same_bits(folder / "undisturbed", run)
    assert not list((run / "checkpoints").glob(".*"))  # what the killed ones left is cleared away
    print(f"{strategy} x {ranks}: {killed} kills, {saving} while saving, {removing} while removing; {ended + 1} runs")
    return ended, saving, removing


def test_a_few_kills(tmp_path: Path) -> None:
    kills(tmp_path, "auto", 1, 3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("strategy", "ranks", "count"), [("auto", 1, 50), ("fsdp", 2, 12), ("ddp", 2, 12)])
def test_many_kills(tmp_path: Path, strategy: str, ranks: int, count: int) -> None:
    _, saving, _ = kills(tmp_path, strategy, ranks, count)
    assert saving >= count // 10
