"""Disks that fill up or become read-only in mid-run, and data that can no longer be read: told apart, nothing lost."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.training.support import (
    assert_same_bits,
    pictures,
    run,
    tiny_command,
    tiny_config,
)
from tests.training.test_checkpoint import small_disk
from tvmatch.cli import main
from tvmatch.data.arrays import source_from_arrays
from tvmatch.training.checkpoint import list_checkpoints
from tvmatch.training.loop import TrainingError


def free_space(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def test_training_on_a_disk_that_fills_up(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        folder = disk / "run"
        assert main(tiny_command(folder, steps=2)) == 0
        size = sum(file.stat().st_size for file in list_checkpoints(folder)[-1].iterdir())
        filler = disk / "filler"
        filler.write_bytes(bytes(free_space(disk) - size // 2))
        capsys.readouterr()
        assert main(tiny_command(folder)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"tvmatch train: cannot save {folder}/checkpoints/step_00000004 (")
        assert "No space left on device. The last good checkpoint is " in error
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000002"]
        assert main(["sample", str(folder), "--count", "2", "--out", str(tmp_path / "x.png")]) == 0

        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):  # not one byte left
            while True:
                file.write(bytes(4096))
        for arguments in (tiny_command(folder), ["sample", str(folder)], tiny_command(disk / "new")):
            assert main(arguments) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert "No space left on device" in error
        filler.unlink()
        assert main(tiny_command(folder)) == 0
        run(tiny_config(tmp_path / "whole"))
        assert_same_bits(folder, tmp_path / "whole")


@pytest.mark.parametrize("what", ["metrics.jsonl", "samples"])
def test_a_disk_that_fills_up_under_metrics_or_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, what: str
) -> None:
    real = open

    def full(path: object, *arguments: object, **keywords: object) -> object:
        mode = arguments[0] if arguments else "r"
        late = what == "samples" or "a" in str(mode)
        if late and what in str(path) and list_checkpoints(tmp_path / "run"):
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **keywords)

    command = tiny_command(tmp_path / "run", sample_every=3)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"tvmatch train: step [3-6]: cannot write into ", error)  # at the latest after the second save
    assert "No space left on device. The last good checkpoint is " in error
    assert "run the same command again" in error
    assert main(command) == 0
    run(tiny_config(tmp_path / "whole"))
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_a_disk_that_becomes_read_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        assert main(tiny_command(disk / "run", steps=2)) == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for arguments in (tiny_command(disk / "run"), ["sample", str(disk / "run")], tiny_command(disk / "new")):
            assert main(arguments) == 2
            assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
        assert main(["sample", str(disk / "run"), "--out", str(tmp_path / "x.png")]) == 0
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert main(tiny_command(disk / "run")) == 0


def test_a_source_that_fails_is_told_apart_from_a_disk(tmp_path: Path) -> None:
    source = source_from_arrays(pictures())

    class Failing:
        shape, labels, class_names = source.shape, source.labels, source.class_names
        num_classes, fingerprint, latent_space = 0, source.fingerprint, None

        def __len__(self) -> int:
            return len(source)

        def batch(self, *_: object) -> np.ndarray:
            raise OSError(5, "Input/output error", "picture.png")

    with pytest.raises(TrainingError, match=r"step 0: the data set cannot be read: .*picture\.png"):
        run(tiny_config(tmp_path / "run"), source=Failing())
