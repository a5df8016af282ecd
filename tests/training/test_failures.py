"""What ends a run in the middle, each in one line on stderr that says what is left and what helps."""

from pathlib import Path

import pytest
import torch

from tests.data.support import write_folder
from tests.training.support import assert_same_bits, tiny_command
from tvmatch.cli import main
from tvmatch.data.stream import ShuffledStream
from tvmatch.training import preparing
from tvmatch.training.checkpoint import list_checkpoints
from tvmatch.training.failures import out_of_memory
from tvmatch.training.loop import _Run
from tvmatch.training.step_gradient import RecordingError

GPU = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.81 GiB of which 1 MiB is free."
)


def failing_after(step: int, error: Exception, patch: pytest.MonkeyPatch) -> None:
    """The gradient of the step after `step` raises."""
    backward = _Run.backward

    def failing(self: _Run, images: torch.Tensor, label: torch.Tensor) -> None:
        if self.state.step == step:
            raise error
        backward(self, images, label)

    patch.setattr(_Run, "backward", failing)


def test_memory_that_is_full_in_a_step(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = tiny_command(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        failing_after(5, torch.OutOfMemoryError(GPU), patch)
        assert main(command) == 1
    last = list_checkpoints(tmp_path / "run")[-1]
    assert last.name == "step_00000004"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"tvmatch train: step 5: out of memory (asked for 20.00 MiB more). The last good checkpoint is {last}. Run the "
        "same command with a larger --accumulate or with --recompute full to continue, or choose another --run with a "
        "smaller --batch-size."
    )
    assert main(command) == 0
    assert main(tiny_command(tmp_path / "whole")) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_memory_that_is_full_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Where a batch that is too large for the GPU shows first: the check of tangents calls the network with it."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(GPU)

    run = tmp_path / "run"
    monkeypatch.setattr(preparing, "verify_tangents", full)
    assert main(tiny_command(run)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "tvmatch train: before the first step: out of memory (asked for 20.00 MiB more). Nothing was written to "
        f"{run}. Run the command with a larger --accumulate, with --recompute full, a smaller --batch-size or a "
        "smaller --network."
    )
    assert not run.exists()


def test_memory_of_the_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_step_that_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    failing_after(
        1, RecordingError("rank 0: the step cannot be recorded (a reason). Train with --graphs off."), monkeypatch
    )
    assert main(tiny_command(tmp_path / "run")) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "tvmatch train: rank 0: the step cannot be recorded (a reason). Train with --graphs off."
    )


def test_an_error_of_a_step_that_nobody_expects_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_after(1, RuntimeError("a bug"), monkeypatch)
    with pytest.raises(RuntimeError, match="a bug"):
        main(tiny_command(tmp_path / "run"))


def test_a_picture_that_strict_refuses_loses_no_step(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = sorted(write_folder(tmp_path / "data", 24, 8).rglob("*.png"))
    bad = files[int(ShuffledStream(24, 4, 0).indices(3)[0])]
    bad.write_bytes(bad.read_bytes()[:60])
    options = {"data": tmp_path / "data", "image_size": 8, "crop": "random", "checkpoint_every": 100}
    assert main(tiny_command(tmp_path / "run", **options, strict=True)) == 2
    (last,) = list_checkpoints(tmp_path / "run")
    assert last.name == "step_00000003"
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("tvmatch train: step 3: ")
    assert bad.name in message
    assert message.endswith(
        f"The last good checkpoint is {last}. Data that is mended, or from which pictures are removed, is other data "
        "and needs another --run; the same command with --no-strict goes on with this run."
    )
    assert main(tiny_command(tmp_path / "run", **options, strict=False)) == 0
    assert main(tiny_command(tmp_path / "whole", **options, strict=False)) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_data_that_fails_in_the_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    """It would be of data that is to be mended."""
    files = sorted(write_folder(tmp_path / "data", 24, 8).rglob("*.png"))
    bad = files[int(ShuffledStream(24, 4, 0).indices(0)[0])]
    content = bad.read_bytes()
    bad.write_bytes(content[:60])
    command = tiny_command(tmp_path / "run", data=tmp_path / "data", image_size=8, crop="random", strict=True, steps=1)
    assert main(command) == 2
    assert list_checkpoints(tmp_path / "run") == []
    bad.write_bytes(content)
    assert main(command) == 0
