"""Finished cells: which files count, and that other data or another initial run behind the same path do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from tvmatch.ablation import running
from tvmatch.ablation.ablating import Plan, ablate
from tvmatch.ablation.kept import finished
from tvmatch.ablation.points import PointSource
from tvmatch.ablation.study import Study
from tvmatch.ablation.tasks import base_config
from tvmatch.training.config import TrainConfig
from tvmatch.training.loop import train

TINY = {"network": "MLP-8x1", "steps": 2, "batch_size": 8, "log_every": 1}
STUDY = Study("one", {"near": {"jumps": "near"}})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations of the runs that are trained."""
    configs: list[TrainConfig] = []

    def noted(config, source, show):
        configs.append(config)
        return train(config, source, show)

    monkeypatch.setattr(running, "train", noted)
    return configs


def write_pictures(path: Path, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 255, (32, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(32) % 4)


@pytest.mark.parametrize("keep", [False, True])
def test_data_rewritten_in_place_is_trained_on_again(tmp_path: Path, trained: list[TrainConfig], keep: bool) -> None:
    """Pictures that no judge reads: the table has the Frechet distance alone."""
    data, out, said = tmp_path / "mine.npz", tmp_path / "out", []
    write_pictures(data, 0)
    options = {"data": str(data), "steps": 2, "batch_size": 8}
    plan = Plan({"one": Study("one", STUDY.variants, task="pictures")}, 1, (1,), 8, options)
    first = ablate(plan, out, keep=keep)["studies"]["one"]["summary"]
    assert first[0]["frechet"]["mean"] > 0
    assert "class_accuracy" not in first[0]
    assert "class accuracy" not in (out / "ablations.md").read_text()
    assert ablate(plan, out, keep=keep)["studies"]["one"]["summary"] == first
    assert len(trained) == 1

    write_pictures(data, 1)
    second = ablate(plan, out, keep=keep, say=said.append)["studies"]["one"]["summary"]
    assert said[0] == f"data={data} is not what it was; run again: 1 of the finished runs"
    assert second[0]["frechet"] != first[0]["frechet"]
    assert len(trained) == 2
    assert ablate(plan, out, keep=keep)["studies"]["one"]["summary"] == second

    for path in (out / "cells").iterdir():  # of before hashes were kept
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "inputs"}))
    write_pictures(data, 0)
    assert ablate(plan, out, keep=True)["studies"]["one"]["summary"] == second
    assert len(trained) == 2


def test_an_initial_run_trained_again_is_started_from_again(tmp_path: Path, trained: list[TrainConfig]) -> None:
    said: list[str] = []

    def start(seed: int) -> str:
        config = {**vars(base_config("points")), **TINY, "seed": seed, "run": tmp_path / f"start{seed}"}
        train(TrainConfig(**config), PointSource(), show=False)
        return str(config["run"])

    plan = Plan({"one": STUDY}, 1, (1,), 8, TINY | {"initial": start(0)})
    first = ablate(plan, tmp_path / "out")["runs"][0]["rows"]
    ablate(plan, tmp_path / "out")
    assert len(trained) == 1
    (tmp_path / "start0").rename(tmp_path / "before")
    Path(start(1)).rename(tmp_path / "start0")
    assert ablate(plan, tmp_path / "out", say=said.append)["runs"][0]["rows"] != first
    assert said[0] == f"initial={tmp_path / 'start0'} is not what it was; run again: 1 of the finished runs"
    assert len(trained) == 2


def test_damaged_results_are_made_again(tmp_path: Path, trained: list[TrainConfig]) -> None:
    plan = Plan({"one": STUDY}, 1, (1,), 8, TINY)
    report = ablate(plan, tmp_path)
    (cell,) = plan.cells().values()
    (path,) = (tmp_path / "cells").iterdir()
    whole = path.read_text()
    other = json.dumps(json.loads(whole) | {"key": "another"})
    for damaged in ("", "{}", "[]", "null", whole[:40], other, json.dumps(json.loads(whole) | {"rows": None})):
        path.write_text(damaged)
        assert finished(cell, tmp_path) is None
    assert ablate(plan, tmp_path)["studies"] == report["studies"]
    assert len(trained) == 2
