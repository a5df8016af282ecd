"""Checkpoints: whole or not at all, and nothing is believed that tvmatch did not write."""

import contextlib
import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tvmatch.training import checkpoint
from tvmatch.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    read_header,
    read_names,
    write_checkpoint,
)

TENSORS = {"flow.a": torch.arange(6.0).reshape(2, 3), "flow.b": torch.tensor(7), "ema.0.9.a": torch.ones(2)}


def header(step: int) -> dict:
    return dict.fromkeys(checkpoint.HEADER, None) | {"step": step, "class_names": ["ü", '"']}


def write(run: Path, step: int, keep: int = 9) -> Path:
    path = checkpoint_path(run, step)
    write_checkpoint(path, TENSORS, header(step), keep)
    return path


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a run", 300)
    assert path.name == "step_00000300.safetensors"
    assert read_header(path) == header(300) | {"format": checkpoint.FORMAT}
    tensors = read_checkpoint(path, "flow.")
    assert tensors.keys() == {"a", "b"}
    assert torch.equal(tensors["a"], TENSORS["flow.a"])
    assert read_names(path, "ema.") == ["ema.0.9.a"]
    assert len(read_checkpoint(path)) == 3


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step_{s:08d}.safetensors" for s in (3, 4)]
    assert files(tmp_path) == [f"step_{s:08d}.safetensors" for s in (3, 4)]


def test_order_is_that_of_the_steps_and_other_names_do_not_count(tmp_path: Path) -> None:
    for step in (999_999_99, 100_000_000, 5):
        write(tmp_path, step)
    for name in ("step_best.safetensors", "step_00000007 (copy).safetensors", ".step_00000008.safetensors.tmp"):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    steps = [checkpoint.step_of(path) for path in list_checkpoints(tmp_path)]
    assert steps == [5, 99_999_999, 100_000_000]


def test_no_folder_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_a_killed_save_leaves_nothing_that_counts_and_the_next_save_clears_it(tmp_path: Path) -> None:
    write(tmp_path, 1)
    stale = tmp_path / "checkpoints" / ".step_00000002.safetensors.tmp"
    stale.write_bytes(b"half")
    assert len(list_checkpoints(tmp_path)) == 1
    write(tmp_path, 3)
    assert files(tmp_path) == [f"step_{s:08d}.safetensors" for s in (1, 3)]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(
    ("target", "failure", "reason"),
    [
        ("os.fsync", full_disk, "No space left on device"),
        ("os.replace", read_only, "Read-only file system"),
        ("builtins.open", read_only, "Read-only file system"),
        ("pathlib.Path.mkdir", read_only, "Read-only file system"),
    ],
)
def test_a_disk_that_refuses_keeps_and_names_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, failure: object, reason: str
) -> None:
    good = write(tmp_path, 1)
    before = good.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(target, failure)
        with pytest.raises(CheckpointError) as caught:
            write(tmp_path, 2, keep=1)
    message = str(caught.value)
    assert reason in message
    assert "step_00000002" in message
    assert f"The last good checkpoint is {good}." in message
    assert "Free some space" in message
    assert files(tmp_path) == [good.name]
    assert good.read_bytes() == before
    write(tmp_path, 2)  # the disk is well again


def test_a_failing_first_save_says_that_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(CheckpointError, match="There is no earlier checkpoint"):
        write(tmp_path, 1)
    assert files(tmp_path) == []


def test_an_interrupt_while_saving_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    good = write(tmp_path, 1)
    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2)
    assert files(tmp_path) == [good.name]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own of `size`, which only root can mount."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        good = write(disk, 1)
        with pytest.raises(CheckpointError, match=r"0\.1 MiB.*No space left on device.*step_00000001"):
            write_checkpoint(checkpoint_path(disk, 2), {"flow.a": torch.zeros(32_000)}, header(2), 1)
        assert files(disk) == [good.name]
        assert read_header(good)["step"] == 1


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """The same without root: the system cuts every write beyond 64 kB."""
    good = write(tmp_path, 1)
    code = """
import resource, signal, sys, torch
from pathlib import Path
from tests.training.test_checkpoint import header
from tvmatch.training.checkpoint import checkpoint_path, write_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
write_checkpoint(checkpoint_path(Path(sys.argv[1]), 2), {"flow.a": torch.zeros(32_000)}, header(2), 1)
"""
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert "CheckpointError: cannot save" in child.stderr
    assert "File too large" in child.stderr
    assert files(tmp_path) == [good.name]
    assert read_header(good)["step"] == 1


class Payload:
    """Unpickling it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_a_renamed_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "was executed"
    path = checkpoint_path(tmp_path, 2)
    write(tmp_path, 1)
    for protocol in (0, pickle.HIGHEST_PROTOCOL):
        path.write_bytes(pickle.dumps(Payload(trace), protocol=protocol))
        for read in (read_header, read_checkpoint, read_names):
            with pytest.raises(CheckpointError, match=r"not a whole safetensors file.*a pickle, perhaps"):
                read(path)
    torch.save({"flow.a": Payload(trace)}, path)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()  # it would have shown


def test_a_file_cut_short_names_the_one_to_go_back_to(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    whole = path.read_bytes()
    for length in (0, 4, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut short.*Delete it to go back to step_00000001\.safetensors"):
            read_header(path)
    path.write_bytes(b"\xff" * 200)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_checkpoint(path)


def test_the_only_one_broken(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="No other checkpoint is left"):
        read_header(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a checkpoint of tvmatch"),
        ({"format": "pt"}, "not a checkpoint of tvmatch"),
        ({"tvmatch": "no json"}, "not a checkpoint of tvmatch"),
        ({"tvmatch": "[1]"}, "not a checkpoint of tvmatch"),
        ({"tvmatch": "{}"}, "not a checkpoint of tvmatch"),
        ({"tvmatch": '{"format": 2, "step": 1}'}, "has format 2; this version of tvmatch reads 1"),
        ({"tvmatch": '{"format": 1, "network": {}}'}, "lacks 'step'"),
    ],
)
def test_a_safetensors_file_of_someone_else(tmp_path: Path, metadata: dict | None, message: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata=metadata)
    for read in (read_header, read_checkpoint, read_names):
        with pytest.raises(CheckpointError, match=message):
            read(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_header(tmp_path / "nowhere.safetensors")
