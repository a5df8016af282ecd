"""What the tests of training and of the command line share: runs that take a second."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tvmatch.data.digits import digits_source
from tvmatch.networks.presets import NETWORKS, Size
from tvmatch.training import loop
from tvmatch.training.checkpoint import list_checkpoints, read_checkpoint
from tvmatch.training.config import TrainConfig
from tvmatch.training.ranks import join_ranks
from tvmatch.training.schedule import Schedule

TINY, TINY_SIZE = "DiT-Test/4", (Size(hidden_size=16, depth=1, num_heads=2), 4)
OPTIONS: dict[str, Any] = {
    "network": TINY,
    "steps": 6,
    "batch_size": 4,
    "warmup_steps": 3,
    "evaluation_ema": (0.5, 0.9),
    "log_every": 1,
    "sample_every": 0,
    "checkpoint_every": 2,
    "device": "cpu",
}


def register_tiny() -> None:
    """A network of a few thousand weights under the name TINY, for a process of its own."""
    NETWORKS[TINY] = TINY_SIZE


@contextlib.contextmanager
def tiny_network() -> Iterator[None]:
    """The same for the length of a block, as other tests list the networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, TINY, TINY_SIZE)
        yield


def tiny_config(run: Path, **changes: Any) -> TrainConfig:
    """A run of six steps on the digits."""
    return TrainConfig(run=run, **(OPTIONS | changes))


def tiny_command(run: Path, **changes: Any) -> list[str]:
    """The same as arguments of `tvmatch`."""
    arguments = ["train", "--run", str(run)]
    for name, value in (OPTIONS | changes).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return arguments


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything in the run's last checkpoint."""
    return read_checkpoint(list_checkpoints(run)[-1])


def assert_same_bits(first: Path, second: Path) -> None:
    """The last checkpoints of two runs hold the same names and the same bits."""
    ours, theirs = last_tensors(first), last_tensors(second)
    assert list_checkpoints(first)[-1].name == list_checkpoints(second)[-1].name
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"{len(different)} of {len(ours)} tensors differ, first {different[0]}"


@contextlib.contextmanager
def steps_of_a_run(config: TrainConfig) -> Iterator[tuple[loop._Run, torch.Tensor, torch.Tensor]]:
    """The loop's own step, ready to be called with a batch of digits and their labels, which come with it."""
    source = digits_source()
    with join_ranks(config.strategy, config.device) as ranks:
        state, header, module = loop.prepare(config, source, ranks)
        run = loop._Run(config, source, state, header, module, ranks, Schedule(config), False)
        indices = run.stream.indices(0)
        images, label = torch.from_numpy(source.batch(indices)), torch.from_numpy(source.labels[indices])
        yield run, images.to(ranks.device), label.to(ranks.device)


def pids_of(folder: Path, program: str = "stand_in.py") -> list[int]:
    """Of what runs a program, or with it, in the folder of a test."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_text().split("\0")
        except OSError:  # it has ended
            continue
        mine = any(word.startswith(str(folder)) for word in words)
        if mine and any(word.endswith(program) for word in words) and int(command.parent.name) != os.getpid():
            found.append(int(command.parent.name))
    return found


PROGRAM = (
    "from tests.training.support import register_tiny; register_tiny(); from tvmatch.cli import main; exit(main())"
)


def run(config: TrainConfig, **keywords) -> None:
    loop.train(config, show=False, **keywords)


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without the clock's share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = {"images_per_second", "training_seconds", "seconds_until_first_step"}
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]


def pictures(count: int = 12, side: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def start(arguments: list[str]) -> subprocess.Popen:
    """`tvmatch` in a process of its own, which knows the tiny network."""
    # a shell may have started the tests in the background, with SIGINT ignored, and children inherit that
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_until_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Return once the metrics of `step` are written; fail if the process ends before."""
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
