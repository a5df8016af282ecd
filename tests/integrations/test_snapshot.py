"""Official snapshots are read as data: hostile ones are refused, by name, without effect."""

import random
import sys
from pathlib import Path

import pytest
import torch

from tests.integrations.official_pickles import HOSTILE, MARKER, SNAPSHOT, dump, module_tree
from tests.integrations.test_official import load, under
from tvmatch.integrations.snapshot import SnapshotError, read_snapshot


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=message) as caught:
        read_snapshot(path)
    assert len(str(caught.value)) < 700
    assert [found.name for found in tmp_path.iterdir()] == ["snapshot.pkl"], MARKER


def test_truncated_anywhere(tmp_path: Path) -> None:
    content, path = SNAPSHOT.read_bytes(), tmp_path / "cut.pkl"
    for length in (*range(0, 900, 41), *range(900, len(content), 23_456), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(SnapshotError):
            read_snapshot(path)


def test_damaged_anywhere(tmp_path: Path) -> None:
    """A changed byte is refused or, within the numbers of a tensor, read; never anything else."""
    content, path = SNAPSHOT.read_bytes(), tmp_path / "damaged.pkl"
    chance, refused = random.Random(0), 0
    for _ in range(40):
        damaged = bytearray(content)
        damaged[chance.randrange(788)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            read_snapshot(path)
        except SnapshotError:
            refused += 1
    assert refused > 10


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the official classes, which are not here anyway, nor those of libraries that are."""
    before = set(sys.modules)
    snapshot = read_snapshot(SNAPSHOT)
    assert {name for name in set(sys.modules) - before if name.startswith(("timm", "training", "torch_utils"))} == set()
    assert snapshot.attributes["do_scale_param"] is True
    assert snapshot.network == "net"
    assert snapshot.data["path"] == "imagenet.zip"


def test_tensors_of_a_plain_snapshot() -> None:
    tensors, _ = load("a")
    read = read_snapshot(SNAPSHOT).tensors
    expected = under(tensors, "net.")
    assert set(read) == set(expected)
    for name, value in expected.items():
        assert read[name].dtype == torch.float32
        assert torch.equal(read[name], value.float()), name


@pytest.mark.parametrize(
    "compiled", [("",), ("model",), ("model.blocks.0", "model.blocks.1"), ("", "model.final_layer")]
)
def test_compiled_snapshots(compiled: tuple[str, ...], tmp_path: Path) -> None:
    plain = read_snapshot(SNAPSHOT)
    named = {f"model.{name}": value for name, value in plain.tensors.items()}
    path = tmp_path / "compiled.pkl"
    path.write_bytes(dump({"net": module_tree(named, compiled, do_scale_param=True)}))
    assert b"_orig_mod" in path.read_bytes() or b"OptimizedModule" in path.read_bytes()
    read = read_snapshot(path)
    assert set(read.tensors) == set(plain.tensors)
    assert all(torch.equal(value, plain.tensors[name]) for name, value in read.tensors.items())
    assert read.attributes["do_scale_param"] is True


def test_a_compiled_part_kept_under_its_name(tmp_path: Path) -> None:
    """A wrapper whose parts are named `_orig_mod`, and a dictionary of tensors with that prefix."""
    plain = read_snapshot(SNAPSHOT)
    wrapped = {f"model._orig_mod.{name}": value for name, value in plain.tensors.items()}
    path = tmp_path / "named.pkl"
    for network in (module_tree(wrapped), {f"_orig_mod.{name}": value for name, value in wrapped.items()}):
        path.write_bytes(dump({"ema": network, "net": None}))
        read = read_snapshot(path)
        assert read.network == "ema"
        assert set(read.tensors) == set(plain.tensors)


def test_an_average_is_preferred_and_tensors_of_other_types_are_read(tmp_path: Path) -> None:
    plain = read_snapshot(SNAPSHOT).tensors
    path = tmp_path / "both.pkl"
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        average = {name: (2 * value).to(dtype) for name, value in plain.items()}
        path.write_bytes(dump({"net": plain, "ema": average}))
        read = read_snapshot(path)
        assert all(torch.equal(value, average[name]) for name, value in read.tensors.items())


def test_transposed_tensors_are_read_in_their_order(tmp_path: Path) -> None:
    plain = read_snapshot(SNAPSHOT).tensors
    weight = plain["x_embedder.proj.weight"]
    path = tmp_path / "strided.pkl"
    path.write_bytes(dump({"net": plain | {"x_embedder.proj.weight": weight.to(memory_format=torch.channels_last)}}))
    assert torch.equal(read_snapshot(path).tensors["x_embedder.proj.weight"], weight)
