"""Checkpoints that are not whole, not ours or not what they say: refused, and never run."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.training.test_checkpoint import FILE, INDEX, READERS, write
from tvmatch.training import checkpoint
from tvmatch.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    read_checkpoint,
    read_header,
)


class Payload:
    """Unpickling it would make a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_a_renamed_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "was executed"
    path = write(tmp_path, 2)
    (path / "data.pkl").write_bytes(pickle.dumps(Payload(trace)))
    (path / ".metadata").write_bytes(pickle.dumps(Payload(trace)))  # what PyTorch's own reader would load
    read_checkpoint(path)
    size = (path / FILE).stat().st_size
    for protocol in (0, pickle.HIGHEST_PROTOCOL):
        (path / FILE).write_bytes(pickle.dumps(Payload(trace), protocol=protocol).ljust(size, b"\0"))
        with pytest.raises(CheckpointError, match=r"cannot be read.*No other checkpoint is left"):
            read_checkpoint(path)
        (path / INDEX).write_bytes(pickle.dumps(Payload(trace), protocol=protocol))
        for read in READERS:
            with pytest.raises(CheckpointError, match="is not the index of a checkpoint"):
                read(path)
        plain = tmp_path / "weights.safetensors"
        plain.write_bytes(pickle.dumps(Payload(trace), protocol=protocol))
        for read in READERS:
            with pytest.raises(CheckpointError, match=r"not a whole safetensors file.*a pickle, perhaps"):
                read(plain)
        path = write(tmp_path, 3 + protocol)
        for other in list_checkpoints(tmp_path)[:-1]:
            checkpoint.remove(other)
    torch.save({"flow.a": Payload(trace)}, plain)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_checkpoint(plain)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()  # it would have shown


def test_a_file_cut_short_or_missing_names_the_one_to_go_back_to(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    whole = (path / FILE).read_bytes()
    for length in (0, 4, 8, 40, len(whole) // 2, len(whole) - 1):
        (path / FILE).write_bytes(whole[:length])
        for read in READERS:
            with pytest.raises(CheckpointError, match=r"cut short.*Delete it to go back to step_00000001\."):
                read(path)
    (path / FILE).write_bytes(b"\xff" * len(whole))
    with pytest.raises(CheckpointError, match=r"cannot be read.*Delete it to go back to step_00000001\."):
        read_checkpoint(path)
    (path / FILE).unlink()
    with pytest.raises(CheckpointError, match=rf"{FILE} is missing.*Delete it to go back to step_00000001\."):
        read_checkpoint(path)
    (path / INDEX).write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not the index of a checkpoint"):
        read_header(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(format=1), "has format 1; this version of tvmatch reads 2"),
        (lambda index: index.pop("step"), "lacks 'step'"),
        (lambda index: index.pop("tensors"), "lacks 'tensors'"),
        (lambda index: index.update(tensors=[1]), "is damaged"),
        (lambda index: index.update(files={"x.safetensors": "big"}), "is missing"),
        (lambda index: index.update(files={"../../other.safetensors": 4}), "names a file elsewhere"),
        (lambda index: index.update(files={"/etc/passwd": 4}), "names a file elsewhere"),
        (lambda index: index["tensors"]["flow.a"].update(shape=[3, 3]), "parts of flow.a are missing"),
        (lambda index: index["tensors"]["flow.a"].update(chunks=[]), "parts of flow.a are missing"),
        (lambda index: index["tensors"]["flow.a"]["chunks"][0].update(file="/etc/passwd"), "parts of flow.a"),
    ],
)
def test_an_index_that_cannot_be_is_refused(tmp_path: Path, change: object, message: str) -> None:
    path = write(tmp_path, 1)
    index = json.loads((path / INDEX).read_text())
    change(index)
    (path / INDEX).write_text(json.dumps(index))
    for read in READERS:
        with pytest.raises(CheckpointError, match=message):
            read(path)


@pytest.mark.parametrize("text", ["[1]", "{}", "no json", "null"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, 1)
    (path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="is not the index of a checkpoint"):
        read_header(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not one of tvmatch"),
        ({"format": "pt"}, "not one of tvmatch"),
        ({"tvmatch": "no json"}, "not one of tvmatch"),
        ({"tvmatch": "[1]"}, "not one of tvmatch"),
        ({"tvmatch": "{}"}, "not one of tvmatch"),
        ({"tvmatch": '{"format": 2, "step": 1}'}, "has format 2; this version of tvmatch reads files of 1"),
        ({"tvmatch": '{"format": 1, "network": {}}'}, "lacks 'step'"),
    ],
)
def test_a_safetensors_file_of_someone_else(tmp_path: Path, metadata: dict | None, message: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata=metadata)
    for read in READERS:
        with pytest.raises(CheckpointError, match=message):
            read(path)


def test_a_missing_one(tmp_path: Path) -> None:
    for name in ("nowhere.safetensors", "step_00000001"):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            read_header(tmp_path / name)
