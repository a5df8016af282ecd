"""Runs that a kill or a signal ended, or that were given more steps: they continue to the same bits."""

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.support import (
    assert_same_bits,
    last_tensors,
    metrics,
    pictures,
    run,
    start,
    tiny_command,
    tiny_config,
    wait_until_step,
)
from tvmatch.cli import main
from tvmatch.data.arrays import source_from_arrays
from tvmatch.data.prefetch import Prefetcher
from tvmatch.training.checkpoint import CheckpointError, list_checkpoints, read_header, remove
from tvmatch.training.loop import _Run, train
from tvmatch.training.run_folder import MetricsFile, RunFolderError, read_config

# Steps enough that the kill comes in mid-run
LONG = {"steps": 36, "batch_size": 16, "checkpoint_every": 6, "log_every": 2, "flip": True, "guidance": "1:3"}


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, number: signal.Signals) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed run"
    np.savez(tmp_path / "data.npz", images=pictures(), labels=np.arange(12) % 3)
    options = LONG | {"data": str(tmp_path / "data.npz")}
    assert main(tiny_command(undisturbed, **options)) == 0
    process = start(tiny_command(killed, **options))
    wait_until_step(process, killed, 14)
    while len(list_checkpoints(killed)) < 2:  # on a busy machine the save of step 12 may still be in hand
        time.sleep(0.002)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]

    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    stopped = read_header(list_checkpoints(killed)[-1])["step"]
    if number == signal.SIGKILL:
        assert stopped in (12, 18, 24, 30)  # the last one it had saved
    else:
        assert 14 <= stopped < LONG["steps"]
        assert f"{number.name}: saved {list_checkpoints(killed)[-1]}; the same command continues the run." in errors
    assert main(tiny_command(killed, **options)) == 0

    assert_same_bits(undisturbed, killed)
    if number == signal.SIGKILL:  # each logged step once, with equal values
        assert metrics(killed) == metrics(undisturbed)
    steps = [line["step"] for line in metrics(killed)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("objective", ["terminal-velocity", "flow-matching"])
def test_a_signal_ends_with_a_checkpoint_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, objective: str
) -> None:
    """The same in this process, where the signal comes at a known step."""
    write = MetricsFile.write

    def write_and_signal(self: MetricsFile, values: dict) -> None:
        write(self, values)
        if values["step"] == 3:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    command = tiny_command(tmp_path / "stopped", objective=objective)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", write_and_signal)
        assert main(command) == 128 + number
    assert list_checkpoints(tmp_path / "stopped")[-1].name == "step_00000003"
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert main(command) == 0
    assert main(tiny_command(tmp_path / "whole", objective=objective)) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")


def test_a_signal_during_the_last_save_leaves_nothing_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With 143 a queue would start the command again, which a complete run refuses."""
    write = MetricsFile.write

    def write_and_signal(self: MetricsFile, values: dict) -> None:
        write(self, values)
        if values["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "write", write_and_signal)
    assert main(tiny_command(tmp_path / "run")) == 0
    assert list_checkpoints(tmp_path / "run")[-1].name == "step_00000006"
    assert "SIGTERM: saved" in " ".join(capsys.readouterr().err.split())


def test_a_second_interrupt_ends_at_once_and_lets_a_save_in_hand_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fsync, next_batch, saving = os.fsync, _Run.next_batch, []

    def slow_disk(descriptor: int) -> None:
        time.sleep(0.2)
        fsync(descriptor)

    def two_interrupts(run: _Run, batches: Prefetcher) -> tuple[torch.Tensor, torch.Tensor]:
        """Two Ctrl-C in the main thread after step 2, while its checkpoint is written."""
        if run.state.step == 2:
            saving.append(not run.saver.writing.done())
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return next_batch(run, batches)

    command = tiny_command(tmp_path / "run")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", slow_disk)
            patch.setattr(_Run, "next_batch", two_interrupts)
            assert main(command) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert saving == [True]
    assert capsys.readouterr().err.splitlines()[-1] == "tvmatch train: interrupted"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    assert main(command) == 0


def test_more_steps_continue_a_complete_run(tmp_path: Path) -> None:
    run(tiny_config(tmp_path / "long", steps=9, sample_every=3))
    run(tiny_config(tmp_path / "short", steps=5))
    run(tiny_config(tmp_path / "short", steps=9, keep_checkpoints=1))
    assert_same_bits(tmp_path / "long", tmp_path / "short")
    assert read_config(tmp_path / "short").steps == 9
    assert len(list_checkpoints(tmp_path / "short")) == 1
    with pytest.raises(RunFolderError, match="complete with 9 steps"):
        run(tiny_config(tmp_path / "short", steps=9))


@pytest.mark.parametrize(
    ("objective", "classes", "before", "after", "told"),
    [
        ("inductive-moment-matching", True, 2, 1, True),
        ("inductive-moment-matching", True, 1, 2, True),
        ("inductive-moment-matching", True, 2, 2, False),
        ("inductive-moment-matching", False, 2, 1, False),  # all are of one kind: groups lie as the samples come
        ("terminal-velocity", True, 2, 1, False),
    ],
)
def test_shares_that_change_the_training_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, objective: str, classes: bool, before: int, after: int, told: bool
) -> None:
    """A share's samples are sorted by class and compared in groups, so other shares compare others."""
    np.savez(tmp_path / "data.npz", images=pictures(32), **({"labels": np.arange(32) % 3} if classes else {}))
    options = {"data": str(tmp_path / "data.npz"), "objective": objective, "batch_size": 16, "checkpoint_every": 1}
    assert main(tiny_command(tmp_path / "run", steps=1, accumulate=before, **options)) == 0
    assert main(tiny_command(tmp_path / "run", steps=2, accumulate=after, **options)) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("From here on this is another training") == told
    if told:
        assert f"compares samples within the {16 // after} of batch_size=16" in error
        assert f"until now that was within {16 // before}." in error
    assert main(tiny_command(tmp_path / "whole", steps=2, accumulate=before, **options)) == 0
    ours, theirs = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("run", "whole"))
    assert ours[0] == theirs[0]
    assert (ours[1] == pytest.approx(theirs[1], rel=1e-5)) == (not told)


@pytest.mark.parametrize("flip", [True, False])
def test_flips_repeat_under_resume_and_matter(tmp_path: Path, flip: bool) -> None:
    run(tiny_config(tmp_path / "whole", flip=flip))
    run(tiny_config(tmp_path / "parts", flip=flip, steps=3))
    run(tiny_config(tmp_path / "parts", flip=flip))
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    run(tiny_config(tmp_path / "other", flip=not flip))
    with pytest.raises(AssertionError, match="differ"):
        assert_same_bits(tmp_path / "whole", tmp_path / "other")


def test_resume_refuses_other_data(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", steps=2)
    run(config, source=source_from_arrays(pictures()))
    before = last_tensors(config.run)
    changed = pictures()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(CheckpointError, match="was trained on other data than this command reads now"):
        run(dataclasses.replace(config, steps=4), source=source_from_arrays(changed))
    assert read_config(config.run).steps == 2  # nothing was touched
    assert all(torch.equal(value, before[name]) for name, value in last_tensors(config.run).items())
    run(dataclasses.replace(config, steps=4), source=source_from_arrays(pictures()))


def test_resume_refuses_another_architecture_and_a_renamed_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", steps=2)
    run(config, source=source_from_arrays(pictures()))
    with pytest.raises(CheckpointError, match="is of another architecture"):
        run(dataclasses.replace(config, steps=4), source=source_from_arrays(pictures(channels=1)))
    path = list_checkpoints(config.run)[-1]
    path.rename(path.with_name("step_00000003"))
    with pytest.raises(CheckpointError, match="holds step 2; give it back the name"):
        run(dataclasses.replace(config, steps=4), source=source_from_arrays(pictures()))


def test_a_broken_last_checkpoint_names_the_one_before(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    run(config)
    first, last = list_checkpoints(config.run)
    part = last / "part_00000.safetensors"
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"Delete it to go back to {first.name}"):
        run(dataclasses.replace(config, steps=8))
    remove(last)
    run(dataclasses.replace(config, steps=8))
    run(tiny_config(tmp_path / "whole", steps=8))
    assert_same_bits(config.run, tmp_path / "whole")


def test_from_a_thread_signals_are_left_alone(tmp_path: Path) -> None:
    handler, results = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: results.append(train(tiny_config(tmp_path / "run"), show=False)))
    thread.start()
    thread.join(60)
    assert results[0].step == 6
    assert signal.getsignal(signal.SIGINT) is handler
    run(tiny_config(tmp_path / "main thread"))
    assert_same_bits(tmp_path / "run", tmp_path / "main thread")
