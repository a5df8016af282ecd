"""What could make an evaluation wrong without a word: kills within a case, two at once, other data, too few samples."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.metrics.test_evaluation import ALONE, PLAN, measure, network_of
from tests.metrics.test_evaluation import run as run  # the fixture
from tests.training.support import tiny_network
from tvmatch.data.arrays import source_from_arrays
from tvmatch.files import locked
from tvmatch.metrics import collecting
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
    assert (tmp_path / "x" / "samples_nfe1_w1.5000001.png").is_file()


def test_two_at_once_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with locked(tmp_path / "x", AssertionError()), pytest.raises(ValueError, match="another process works there"):
        measure(run, tmp_path / "x.json", ONE)
    parts = tmp_path / ".s.safetensors.parts"
    parts.mkdir()
    source = source_from_arrays(np.zeros((9, 8, 8, 3), np.uint8))
    with locked(parts, AssertionError()), pytest.raises(ValueError, match="another process works there"):
        gather_statistics(source, "zeros", network_of(run), tmp_path / "s.safetensors", 9, ALONE)
    gather_statistics(source, "zeros", network_of(run), tmp_path / "s.safetensors", 9, ALONE)
    assert not parts.exists()


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


def test_statistics_with_too_few_features_are_refused_before_anything_is_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_from_arrays(np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8))
    path = gather_statistics(source, "others", network_of(run), tmp_path / "s.safetensors", 3, ALONE)
    monkeypatch.setattr(FeatureNetwork, "__call__", None)
    with pytest.raises(ValueError, match=r"keeps 3 features, and these figures need at least 6: .* --keep"):
        measure(run, tmp_path / "x.json", dataclasses.replace(ONE, statistics=path))


def test_what_an_evaluation_of_something_else_left_goes_when_this_one_is_done(run: Path, tmp_path: Path) -> None:
    measure(run, tmp_path / "x.json", dataclasses.replace(ONE, calls=(1, 2)))
    measure(run, tmp_path / "x.json", dataclasses.replace(ONE, calls=(1,), samples=25))
    names = sorted(path.name for path in (tmp_path / "x").iterdir() if path.suffix == ".png")
    assert names == ["nearest_nfe1_w1.5.png", "samples_nfe1_w1.5.png", "tradeoff.png"]
    assert [path.name for path in (tmp_path / "x" / "rows").iterdir()] == ["nfe1_w1.5_seed0.json"]


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
