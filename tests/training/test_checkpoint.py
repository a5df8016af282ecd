"""Checkpoints: whole or not at all, and nothing is believed that tvmatch did not write."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tvmatch.training import checkpoint
from tvmatch.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    read_header,
    read_shapes,
)
from tvmatch.training.ranks import Ranks
from tvmatch.training.saving import Saver

TENSORS = {"flow.a": torch.arange(6.0).reshape(2, 3), "flow.b": torch.tensor(7), "ema.0.9.a": torch.ones(2)}


FILE, INDEX = "part_00000.safetensors", "tvmatch.json"


READERS = (read_header, read_checkpoint, read_shapes)


def header(step: int) -> dict:
    return dict.fromkeys(checkpoint.HEADER, None) | {"step": step, "class_names": ["ü", '"']}


def write(run: Path, step: int, keep: int = 9, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    saver = Saver(run, keep, Ranks(torch.device("cpu")))
    try:
        path = saver.start(step, tensors, header(step))
        saver.wait()
    finally:
        saver.close()
    return path


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a run", 300)
    assert path == checkpoint_path(tmp_path / "a run", 300)
    assert path.name == "step_00000300"
    assert read_header(path) == header(300) | {"format": checkpoint.FORMAT}
    tensors = read_checkpoint(path, "flow.")
    assert tensors.keys() == {"a", "b"}
    assert all(torch.equal(value, TENSORS[f"flow.{name}"]) for name, value in tensors.items())
    assert read_shapes(path, "ema.") == {"ema.0.9.a": torch.Size([2])}
    assert len(read_checkpoint(path)) == 3


def test_a_part_is_a_plain_safetensors_file_that_others_may_read(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert sorted(content(path)) == [FILE, INDEX]
    saved = load_file(path / FILE)
    assert saved.keys() == TENSORS.keys()
    assert all(torch.equal(value, TENSORS[name]) for name, value in saved.items())
    assert (path / FILE).stat().st_mode == (path / INDEX).stat().st_mode


def test_what_changes_after_the_start_of_a_save_is_not_in_it(tmp_path: Path) -> None:
    """The background thread writes a copy, so training may go on at once."""
    saver, tensors = Saver(tmp_path, 2, Ranks(torch.device("cpu"))), {"flow.a": torch.zeros(10)}
    for step in (1, 2):
        path = saver.start(step, tensors, header(step))
        tensors["flow.a"] += 1
    saver.wait()
    assert read_checkpoint(path)["flow.a"].tolist() == [1.0] * 10
    assert read_checkpoint(checkpoint_path(tmp_path, 1))["flow.a"].tolist() == [0.0] * 10
    saver.close()


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 2, Ranks(torch.device("cpu")))
    saver.start(1, TENSORS, header(1))
    saver.start(1, {"flow.a": torch.zeros(1)}, header(1))
    saver.close()
    assert len(read_shapes(checkpoint_path(tmp_path, 1))) == 3
    write(tmp_path, 1)  # by a run that was continued and stopped at once
    assert len(read_shapes(checkpoint_path(tmp_path, 1))) == 3


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=2)
    assert names(tmp_path) == [f"step_{s:08d}" for s in (3, 4)]


def test_order_is_that_of_the_steps_and_other_names_do_not_count(tmp_path: Path) -> None:
    for step in (999_999_99, 100_000_000, 5):
        write(tmp_path, step)
    for name in ("step_best", "step_00000007 (copy)", ".step_00000008.tmp", "step_00000009"):
        (tmp_path / "checkpoints" / name).mkdir()  # the last without an index
    assert [checkpoint.step_of(path) for path in list_checkpoints(tmp_path)] == [5, 99_999_999, 100_000_000]


def test_no_folder_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_a_killed_save_leaves_nothing_that_counts_and_the_next_save_clears_it(tmp_path: Path) -> None:
    write(tmp_path, 1)
    stale = tmp_path / "checkpoints" / ".step_00000002.tmp"
    stale.mkdir()
    (stale / FILE).write_bytes(b"half")
    assert len(list_checkpoints(tmp_path)) == 1
    write(tmp_path, 3)
    assert names(tmp_path) == [f"step_{s:08d}" for s in (1, 3)]


def test_a_removal_that_is_killed_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        checkpoint.remove(path)
    assert list_checkpoints(tmp_path) == []
    write(tmp_path, 2)
    assert names(tmp_path) == ["step_00000002"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(
    ("target", "failure", "reason"),
    [
        ("os.fsync", full_disk, "No space left on device"),
        ("os.replace", read_only, "Read-only file system"),
        ("pathlib.Path.rename", read_only, "Read-only file system"),
        ("builtins.open", read_only, "Read-only file system"),
        ("pathlib.Path.mkdir", read_only, "Read-only file system"),
        ("tvmatch.training.safetensors_file.save_file", full_disk, "No space left on device"),
    ],
)
def test_a_disk_that_refuses_keeps_and_names_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, failure: object, reason: str
) -> None:
    good = write(tmp_path, 1)
    before = content(good)
    with monkeypatch.context() as patch:
        patch.setattr(target, failure)
        with pytest.raises(CheckpointError) as caught:
            write(tmp_path, 2, keep=1)
    message = str(caught.value)
    assert reason in message
    assert "step_00000002" in message
    assert f"The last good checkpoint is {good}." in message
    assert "Free some space" in message
    assert names(tmp_path) == [good.name]
    assert content(good) == before
    write(tmp_path, 2)  # the disk is well again


def test_a_failing_first_save_says_that_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(CheckpointError, match="There is no earlier checkpoint"):
        write(tmp_path, 1)
    assert names(tmp_path) == []


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own of `size`, which only root can mount. `.ci/run` forbids root to skip it."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        assert "TVMATCH_MUST_MOUNT" not in os.environ, mounted.stderr.decode()
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        good = write(disk, 1)
        with pytest.raises(CheckpointError, match=r"0\.1 MiB.*No space left on device.*step_00000001"):
            write(disk, 2, 1, {"flow.a": torch.zeros(32_000)})
        assert names(disk) == [good.name]
        assert read_header(good)["step"] == 1


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """The same without root: the system cuts every write beyond 64 kB."""
    good = write(tmp_path, 1)
    code = """
import resource, signal, sys, torch
from pathlib import Path
from tests.training.test_checkpoint import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
write(Path(sys.argv[1]), 2, 1, {"flow.a": torch.zeros(32_000)})
"""
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert "CheckpointError: cannot save" in child.stderr
    assert "File too large" in child.stderr
    assert names(tmp_path) == [good.name]
    assert read_header(good)["step"] == 1


def test_parts_of_several_ranks_are_put_together(tmp_path: Path) -> None:
    """As three ranks write a tensor of five rows; both readers give it whole."""
    path, whole = write(tmp_path, 1, tensors={"flow.a": torch.arange(10.0).reshape(5, 2)}), torch.arange(10.0)
    index, chunks = json.loads((path / INDEX).read_text()), []
    for rank, (first, last) in enumerate(((0, 2), (2, 4), (4, 5))):
        name = f"part_{rank:05d}.safetensors"
        save_file({"flow.a": whole.reshape(5, 2)[first:last].contiguous()}, path / name)
        index["files"][name] = (path / name).stat().st_size
        chunks.append({"offset": [first, 0], "shape": [last - first, 2], "file": name})
    index["tensors"]["flow.a"]["chunks"] = chunks
    (path / INDEX).write_text(json.dumps(index))
    goal = torch.zeros(5, 2)
    load_checkpoint(path, {"flow.a": goal}, None)
    assert torch.equal(read_checkpoint(path)["flow.a"], whole.reshape(5, 2))
    assert torch.equal(goal, whole.reshape(5, 2))
    chunks[1]["shape"], chunks[2]["shape"] = [1, 2], [2, 2]  # the files hold others
    (path / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"cannot be read: flow.a is torch.float32 \[2, 2\], not as the index says"
    ):
        read_checkpoint(path)


def test_loading_reads_only_what_is_asked_for_and_in_place(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    goal = torch.zeros(2, 3)
    load_checkpoint(path, {"flow.a": goal}, None)
    assert torch.equal(goal, TENSORS["flow.a"])
    with pytest.raises(CheckpointError, match=r"cannot be read: .*flow\.c"):
        load_checkpoint(path, {"flow.c": goal}, None)
