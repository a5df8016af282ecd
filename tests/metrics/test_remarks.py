"""What a reader of the figures must know is said, and kept with them."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.metrics.test_evaluation import ALONE, PLAN, measure, network_of
from tests.metrics.test_evaluation import run as run  # the fixture
from tests.training.support import tiny_network
from tvmatch.data.arrays import npz_source, source_from_arrays
from tvmatch.metrics import evaluation
from tvmatch.metrics.evaluation import evaluate
from tvmatch.metrics.features import FeatureNetwork, Preprocessing
from tvmatch.metrics.remarks import class_counts, class_remark
from tvmatch.metrics.statistics import KEY, check_replaceable, gather_statistics, made_by
from tvmatch.training.trained import load_run

ONE = dataclasses.replace(PLAN, calls=(1,), seeds=(0,))


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield


def test_what_a_reader_must_know_is_said_and_kept(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    source = source_from_arrays(np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), np.uint8))
    path = gather_statistics(source, "others.npz", network_of(run), tmp_path / "other.safetensors", 12, ALONE)
    plan = dataclasses.replace(ONE, samples=12, statistics=path)
    evaluate(run, load_run(run), network_of(run), plan, tmp_path / "x.json", ALONE, said.append)
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["remarks"] == said
    assert said[0].startswith("12 samples give a covariance of rank 11 at most, in 12 dimensions")
    assert said[1].startswith("12 pictures of other.safetensors give a covariance of rank 11")
    assert f"is of others.npz, not of what {run} was trained on" in said[2]
    assert said[0] in (tmp_path / "x" / "table.md").read_text()
    assert told["kernel_subsets"] == [100, 12]
    measure(run, tmp_path / "y.json", ONE)
    assert json.loads((tmp_path / "y.json").read_text())["remarks"] == []
    # another network than Inception, used as Inception is without anybody saying so
    network = FeatureNetwork(run.parent / "small.pt", Preprocessing(), network_of(run).device)
    evaluate(run, load_run(run), network, ONE, tmp_path / "z.json", ALONE, said.append)
    assert said[-1].startswith("small.pt is not the Inception network")
    given = dataclasses.replace(ONE, statistics=tmp_path / "z" / "statistics.safetensors")
    evaluate(run, load_run(run), network, given, tmp_path / "given.json", ALONE)
    (remark,) = json.loads((tmp_path / "given.json").read_text())["remarks"]
    assert remark.startswith("small.pt is not the Inception network")


def test_what_is_said_of_calls_is_of_all_rows(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when fewer calls are added to an evaluation that has more."""
    monkeypatch.setattr(evaluation, "untaught", lambda objective, method, calls: "not taught" if calls > 1 else None)
    for calls in ((2,), (1,)):
        measure(run, tmp_path / "x.json", dataclasses.replace(ONE, calls=calls))
        assert json.loads((tmp_path / "x.json").read_text())["remarks"] == ["not taught"]


def test_made_statistics_stay_when_the_file_of_the_network_is_renamed(run: Path, tmp_path: Path) -> None:
    measure(run, tmp_path / "x.json", ONE)
    made = (tmp_path / "x" / "statistics.safetensors").stat().st_mtime_ns
    network = network_of(run)
    renamed = tmp_path / "renamed.pt"
    renamed.write_bytes(network.path.read_bytes())
    again = FeatureNetwork(renamed, network.preprocessing, network.device)
    evaluate(run, load_run(run), again, dataclasses.replace(ONE, calls=(1, 2)), tmp_path / "x.json", ALONE)
    assert (tmp_path / "x" / "statistics.safetensors").stat().st_mtime_ns == made


def test_statistics_are_not_replaced_by_fewer(run: Path, tmp_path: Path) -> None:
    source, network, path = npz_source(run.parent / "data.npz"), network_of(run), tmp_path / "s.safetensors"
    gather_statistics(source, "data", network, path, 20, ALONE)
    check_replaceable(path, source, "data", network, 40, 30)
    for pictures, keep in ((40, 19), (30, 20), (19, 40)):
        with pytest.raises(ValueError, match="is of 40 pictures and keeps the features of 20, and this would be of"):
            check_replaceable(path, source, "data", network, pictures, keep)


def test_a_part_of_the_pictures_is_said_to_be_one(run: Path, tmp_path: Path) -> None:
    """Kept features, first pictures, classes of other shares, a guidance scale that was not trained."""
    source = npz_source(run.parent / "data.npz")
    path = gather_statistics(source, "data", network_of(run), tmp_path / "s.safetensors", 9, ALONE, first=20)
    measure(run, tmp_path / "x.json", dataclasses.replace(ONE, statistics=path, samples=18, scales=(1.5, 1.0)))
    told = json.loads((tmp_path / "x.json").read_text())
    first, kept, classes, scale = told["remarks"]
    assert first.startswith("s.safetensors is of the first 20 of 40 pictures")
    assert kept.startswith(
        "s.safetensors keeps the features of 9 of 20 pictures: nearest pictures and authenticity know"
    )
    assert classes.startswith("classes come in turn: 6 to 6 samples of a class; the pictures hold 6 to 7 of a class")
    assert scale.startswith("w=1 was not seen in training")
    assert all(remark in (tmp_path / "x" / "table.md").read_text() for remark in told["remarks"])
    assert told["classes"] == [6, 6, 6]
    assert told["statistics"]["classes"] == [7, 7, 6]
    assert told["authenticity_among"] == 9


@pytest.mark.parametrize("code", [None, "0123456789abcdef"])
def test_statistics_of_other_code_are_used_and_it_is_said(run: Path, tmp_path: Path, code: str | None) -> None:
    """Published files do not tell their code, and remain of use."""
    source, path = npz_source(run.parent / "data.npz"), tmp_path / "s.safetensors"
    gather_statistics(source, "data", network_of(run), path, 40, ALONE)
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()[KEY])
    assert told.pop("code") == made_by()["code"]
    save_file(load_file(path), path, {KEY: json.dumps(told | ({"code": code} if code else {}))})
    measure(run, tmp_path / "x.json", dataclasses.replace(ONE, statistics=path))
    (remark,) = json.loads((tmp_path / "x.json").read_text())["remarks"]
    how = (
        "was made by other code than this (hash 0123456789ab, here " if code else "does not say which code made it: if"
    )
    assert remark.startswith(f"s.safetensors {how}")
    assert remark.endswith("`tvmatch statistics` makes it anew.")


@pytest.mark.parametrize(
    ("samples", "classes", "pictures", "told"),
    [
        (10, 0, (), None),
        (2000, 1000, (), None),
        (2500, 1000, (), "2 to 3 samples of a class. The"),
        (500, 1000, (), "0 to 1 samples of a class (500 of 1000 classes are not drawn at all)"),
        (1000, 2, (600, 400), "500 to 500 samples of a class; the pictures hold 400 to 600 of a class"),
        (1000, 2, (510, 490), None),
        (1000, 2, (1000, 0), "hold 0 to 1000"),
        (1000, 2, (5, 5, 5), "of 2 classes and the pictures of 3"),
    ],
)
def test_classes_of_other_shares_are_said(samples: int, classes: int, pictures: tuple, told: str | None) -> None:
    remark = class_remark(class_counts(samples, classes), pictures)
    assert remark is None if told is None else told in remark
