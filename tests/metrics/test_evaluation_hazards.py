"""What could make an evaluation wrong without a word: kills within a case, two at once, other data, too few samples."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.metrics.networks import save_small
from tests.metrics.test_evaluation import ALONE, PLAN, measure, network_of
from tests.metrics.test_evaluation import run as run  # the fixture
from tests.training.support import tiny_network
from tvmatch.data.arrays import source_from_arrays
from tvmatch.files import locked
from tvmatch.metrics import cases, collecting, identity
from tvmatch.metrics.evaluation import evaluate
from tvmatch.metrics.features import FeatureNetwork, Preprocessing
from tvmatch.metrics.statistics import KEY, gather_statistics, read_statistics
from tvmatch.training.trained import load_run

ONE = dataclasses.replace(PLAN, calls=(1,), seeds=(0,))


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield


def figures(out: Path) -> list[dict[str, Any]]:
    """What was measured, without how long it took."""
    rows = json.loads(out.read_text())["by_seed"]
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def test_a_case_that_was_killed_in_the_middle_ends_with_the_same_figures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "SAVE_SECONDS", -1.0)  # after every batch
    measure(run, tmp_path / "whole.json", ONE)
    call, seen = FeatureNetwork.__call__, []

    def killed(self: FeatureNetwork, pictures: torch.Tensor) -> torch.Tensor:
        seen.append(len(pictures))
        if len(seen) == 4:  # after the 40 training pictures: six batches; the statistics are there already
            raise KeyboardInterrupt
        time.sleep(0.02)
        return call(self, pictures)

    statistics = dataclasses.replace(ONE, statistics=tmp_path / "whole" / "statistics.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureNetwork, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(run, tmp_path / "killed.json", statistics)
    assert list((tmp_path / "killed" / "unfinished").rglob("*.safetensors"))
    measure(run, tmp_path / "killed.json", statistics)
    assert figures(tmp_path / "killed.json") == figures(tmp_path / "whole.json")  # to the bit
    assert json.loads((tmp_path / "killed.json").read_text())["by_seed"][0]["seconds_drawing"] > 0.06  # both attempts
    assert not (tmp_path / "killed" / "unfinished").exists()


def test_guidance_scales_that_are_nearly_equal_are_measured_apart(run: Path, tmp_path: Path) -> None:
    rows = measure(run, tmp_path / "x.json", dataclasses.replace(ONE, scales=(1.5, 1.5000001)))
    assert [(row["w"], row["seeds"]) for row in rows] == [(1.5, [0]), (1.5000001, [0])]
    assert (tmp_path / "x" / "samples_nfe1_w1.5000001_seed0.png").is_file()


def test_two_at_once_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with locked(tmp_path / "x", AssertionError()), pytest.raises(ValueError, match="another process works there"):
        measure(run, tmp_path / "x.json", ONE)
    parts = tmp_path / ".s.safetensors.parts"
    parts.mkdir()
    source = source_from_arrays(np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8))
    with locked(parts, AssertionError()), pytest.raises(ValueError, match="another process works there"):
        gather_statistics(source, "zeros", network_of(run), tmp_path / "s.safetensors", 9, ALONE)
    gather_statistics(source, "zeros", network_of(run), tmp_path / "s.safetensors", 9, ALONE)
    assert not parts.exists()


def test_statistics_with_too_few_features_are_refused_before_anything_is_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_from_arrays(np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8))
    path = gather_statistics(source, "others", network_of(run), tmp_path / "s.safetensors", 3, ALONE)
    monkeypatch.setattr(FeatureNetwork, "__call__", None)
    with pytest.raises(ValueError, match=r"keeps 3 features, and these figures need at least 6: .* --keep"):
        measure(run, tmp_path / "x.json", dataclasses.replace(ONE, statistics=path))


def test_an_evaluation_of_something_else_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    measure(run, out, ONE)
    kept = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with pytest.raises(
        ValueError, match=r"samples 24 \(here 25\); it is not overwritten. Choose another --out, or remove"
    ):
        measure(run, out, dataclasses.replace(ONE, samples=25))
    save_small(tmp_path / "small.pt", torch.nn.Sequential(torch.nn.Conv2d(3, 5, 12), torch.nn.Flatten()))
    other = FeatureNetwork(tmp_path / "small.pt", Preprocessing(12), network_of(run).device)
    with pytest.raises(ValueError, match=r"with features.sha256 \w{12}\.\.\. \(here"):
        evaluate(run, load_run(run), other, ONE, out, ALONE)
    (tmp_path / "small.pt").unlink()
    out.unlink()  # the rows alone tell it too
    with pytest.raises(ValueError, match=r"seed0\.json is of another evaluation, with samples 24"):
        measure(run, out, dataclasses.replace(ONE, samples=25))
    out.write_bytes(kept[out])
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == kept
    measure(run, out, dataclasses.replace(ONE, calls=(2,)))  # more of the same
    assert len(json.loads(out.read_text())["rows"]) == 2
    out.write_text("[]")
    with pytest.raises(ValueError, match="holds no evaluation, and is not overwritten"):
        measure(run, out, ONE)
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no evaluation, and is not overwritten"):
        measure(run, tmp_path / "y.json", ONE)
    assert not (tmp_path / "y").exists()  # nothing is left behind


def test_rows_of_other_code_are_not_taken_for_these(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(run, tmp_path / "x.json", ONE)
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["k"] == {"precision_recall": 3, "density_coverage": 5}
    assert (told["directions"], set(told["chance"].values())) == (1000, {0})
    assert told["torchmetrics"] == version("torchmetrics")
    assert told["by_seed"][0]["commit"] == told["commit"]
    monkeypatch.setattr(identity, "CODE", ("metrics",))
    with pytest.raises(ValueError, match="is of another evaluation, with code"):
        measure(run, tmp_path / "x.json", ONE)


def test_the_pictures_are_those_of_the_seed_in_their_name(run: Path, tmp_path: Path) -> None:
    """Also if seeds come one after another into one place; what was removed is drawn again."""
    out, folder = tmp_path / "x.json", tmp_path / "x"
    for seeds in ((0,), (1,), (0, 1)):
        measure(run, out, dataclasses.replace(ONE, seeds=seeds))
    first = (folder / "samples_nfe1_w1.5_seed0.png").read_bytes()
    assert first != (folder / "samples_nfe1_w1.5_seed1.png").read_bytes()
    (folder / "samples_nfe1_w1.5_seed0.png").unlink()
    (folder / "nearest_nfe1_w1.5_seed0.png").unlink()
    before = figures(out)
    measure(run, out, dataclasses.replace(ONE, seeds=(0, 1)))
    assert (folder / "samples_nfe1_w1.5_seed0.png").read_bytes() == first
    assert (folder / "nearest_nfe1_w1.5_seed0.png").is_file()
    assert figures(out)[0]["nearest"]["numbers"] == before[0]["nearest"]["numbers"]


def test_one_progress_counts_all_cases(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    @contextlib.contextmanager
    def noted(name: str, total: int, show: bool) -> Iterator[Any]:
        seen.append([name, total, 0])
        yield lambda dealt, worked: seen[-1].__setitem__(2, seen[-1][2] + dealt)

    monkeypatch.setattr(cases, "counting", noted)
    measure(run, tmp_path / "x.json", ONE)
    measure(run, tmp_path / "x.json", PLAN)  # of four cases one is there
    assert seen == [["samples of 1 cases", 24, 24], ["samples of 3 cases", 72, 72]]


@pytest.mark.parametrize("damage", ["provenance", "missing", "network", "features", "nan", "counts"])
def test_damaged_statistics_are_refused(tmp_path: Path, damage: str) -> None:
    identity = {"sha256": "", "size": 8, "resize": "legacy", "mean": [0.0], "deviation": [1.0]}
    told: Any = {"data": "x", "fingerprint": "", "pictures": 9, "shape": [3, 8, 8], "network": identity}
    tensors = {"mean": torch.zeros(2), "covariance": torch.eye(2), "features": torch.zeros(4, 2)}
    tensors["indices"] = torch.arange(4)
    if damage == "provenance":
        told = [1]
    elif damage == "missing":
        del told["shape"]
    elif damage == "network":
        told["network"] = {}
    elif damage == "features":
        tensors["features"] = torch.zeros(4, 3)
    elif damage == "nan":
        tensors["features"][0] = torch.nan
    else:
        told["pictures"] = "many"
    save_file(tensors, tmp_path / "s.safetensors", {KEY: json.dumps(told)})
    with pytest.raises(ValueError, match=r"s.safetensors holds no statistics of `tvmatch statistics`"):
        read_statistics(tmp_path / "s.safetensors")
