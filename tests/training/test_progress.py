"""What a run tells is worth less than the run: stderr and stdout that cannot be written end no training."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.support import PROGRAM, tiny_command, wait_until_step
from tvmatch.training.checkpoint import list_checkpoints, step_of
from tvmatch.training.progress import TrainingProgress


def start(arguments: list[str], **streams: object) -> subprocess.Popen:
    """`tvmatch` in a process of its own, which knows the tiny network."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **streams,
    )


def test_a_closed_pipe_and_an_interrupt_end_with_a_checkpoint(tmp_path: Path) -> None:
    """As Ctrl-C does with `tvmatch train 2>&1 | tee log`: tee dies of it first."""
    # it says something at its start, into the closed pipe, where it continues
    assert start(tiny_command(tmp_path / "run", steps=2), stdout=subprocess.DEVNULL).wait(120) == 0
    process = start(
        tiny_command(tmp_path / "run", steps=100_000, checkpoint_every=100_000),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    process.stdout.close()
    wait_until_step(process, tmp_path / "run", 6)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert step_of(list_checkpoints(tmp_path / "run")[-1]) >= 6


@pytest.mark.parametrize("full", [("stderr",), ("stdout",), ("stderr", "stdout")])
def test_a_full_disk_under_what_is_told_ends_no_training(tmp_path: Path, full: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as file:
        streams = {name: file if name in full else subprocess.PIPE for name in ("stderr", "stdout")}
        process = start(tiny_command(tmp_path / "run"), **streams, text=True)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert step_of(list_checkpoints(tmp_path / "run")[-1]) == 6
    if full == ("stderr",):
        assert out == f"draw with: tvmatch sample {tmp_path / 'run'}\n"
    if full == ("stdout",):
        told = errors.splitlines()[-1]
        assert told == "tvmatch train: cannot write to stdout: No space left on device. All else is done."


def test_a_bar_on_a_terminal_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    with TrainingProgress("run", 0, 2) as progress:
        assert not progress.bar.disable
        progress.say("a line")
        progress.update(1, {"loss": 1.0})
        progress.update(2)
