"""Whole evaluations: the figures against samples that are known, files, kills, several processes."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.metrics.networks import save_small
from tests.training.pool import Pool
from tests.training.support import tiny_config, tiny_network
from tvmatch.data.arrays import npz_source, source_from_arrays
from tvmatch.data.source import to_pictures
from tvmatch.metrics import cases, evaluation, statistics, training_data
from tvmatch.metrics.cases import Case, Drawer, averaged
from tvmatch.metrics.evaluation import EvaluationPlan, evaluate
from tvmatch.metrics.features import FeatureNetwork, Preprocessing
from tvmatch.metrics.frechet import FeatureStatistics, frechet_distance
from tvmatch.metrics.statistics import gather_statistics, read_statistics
from tvmatch.metrics.tradeoff import table
from tvmatch.sampling import draw
from tvmatch.training.loop import train
from tvmatch.training.ranks import Ranks, join_ranks
from tvmatch.training.trained import load_run

CPU = torch.device("cpu")
ALONE = Ranks(CPU)
PLAN = EvaluationPlan(calls=(1, 2), scales=(1.5,), samples=24, seeds=(0, 3), batch_size=7)


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on 40 pictures of three classes."""
    folder = tmp_path_factory.mktemp("evaluated")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(40) % 3)
    save_small(folder / "small.pt")
    with tiny_network():
        train(tiny_config(folder / "run", data=str(folder / "data.npz"), learning_rate=1e-2), show=False)
    return folder / "run"


def network_of(run: Path) -> FeatureNetwork:
    return FeatureNetwork(run.parent / "small.pt", Preprocessing(12), CPU)


def measure(run: Path, out: Path, plan: EvaluationPlan = PLAN, ranks: Ranks = ALONE) -> list[dict[str, Any]]:
    return evaluate(run, load_run(run), network_of(run), plan, out, ranks)


def measure_on_ranks(run: Path, out: Path) -> list[dict[str, Any]]:
    with tiny_network(), join_ranks("ddp", "cpu") as ranks:
        return measure(run, out, ranks=ranks)


def test_figures_and_what_pins_them(run: Path, tmp_path: Path) -> None:
    rows = measure(run, tmp_path / "figures.json")
    told = json.loads((tmp_path / "figures.json").read_text())
    assert told["rows"] == rows
    assert [(row["nfe"], row["w"], row["seeds"]) for row in rows] == [(1, 1.5, [0, 3]), (2, 1.5, [0, 3])]
    assert [(row["nfe"], row["seed"]) for row in told["by_seed"]] == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert told["grids"] == {"1": [1.0, 0.0], "2": [1.0, 0.5, 0.0]}
    assert told["checkpoint"]["step"] == 6
    assert told["checkpoint"]["ema"] == 0.9
    assert {len(told[name]["sha256"]) for name in ("checkpoint", "features", "statistics")} == {64}
    assert (told["samples"], told["neighbours"], told["seeds"]) == (24, 24, [0, 3])

    # the Frechet distance of the very samples that `tvmatch sample` draws, computed by hand
    network, trained = network_of(run), load_run(run)
    data = np.load(run.parent / "data.npz")["images"]
    real = FeatureStatistics.from_features(network(torch.from_numpy(data)))
    for row in told["by_seed"]:
        x = draw(trained.flow, torch.arange(24) % 3, 1.5, row["nfe"], seed=row["seed"])
        drawn = FeatureStatistics.from_features(network(to_pictures(x)))
        assert row["frechet"] == pytest.approx(frechet_distance(drawn, real), rel=1e-5)
    pair = [row["frechet"] for row in told["by_seed"][:2]]
    assert rows[0]["frechet"] == pytest.approx(np.mean(pair))
    assert rows[0]["frechet_over_seeds"] == pytest.approx(np.std(pair, ddof=1))


def test_pictures_and_table(run: Path, tmp_path: Path) -> None:
    rows = measure(run, tmp_path / "figures.json", dataclasses.replace(PLAN, seeds=(0,)))
    folder = tmp_path / "figures"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "nearest_nfe1_w1.5_seed0.png",
        "nearest_nfe2_w1.5_seed0.png",
        "rows",
        "samples_nfe1_w1.5_seed0.png",
        "samples_nfe2_w1.5_seed0.png",
        "statistics.safetensors",
        "table.md",
        "tradeoff.png",
    ]
    assert Image.open(folder / "samples_nfe1_w1.5_seed0.png").size[0] > 10 * 60
    assert (folder / "table.md").read_text() == table(rows)
    assert f"| 1 | 1.5 | {rows[0]['frechet']:.2f} |" in table(rows)
    told = json.loads((tmp_path / "figures.json").read_text())["by_seed"][0]["nearest"]
    assert np.shape(told["numbers"]) == (10, 8)
    assert (np.diff(told["distances"], axis=1) >= 0).all()


def test_real_pictures_in_place_of_samples_are_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A perfect memory: no distance, full precision, no authenticity, and each sample's own picture the nearest."""
    data = torch.from_numpy(np.load(run.parent / "data.npz")["images"])
    monkeypatch.setattr(Drawer, "__call__", lambda self, case, numbers: data[numbers.start : numbers.stop])
    plan = dataclasses.replace(PLAN, samples=40, calls=(1,), seeds=(0,))
    row = measure(run, tmp_path / "copied.json", plan)[0]
    assert row["frechet"] < 1e-6
    assert (row["precision"], row["recall"], row["coverage"], row["authenticity"]) == (1, 1, 1, 0)
    assert row["sliced_w2"] < 1e-6
    told = json.loads((tmp_path / "copied.json").read_text())["by_seed"][0]["nearest"]
    assert [line[0] for line in told["numbers"]] == list(range(10))
    # where neighbours are sought among some, copies are still found among all
    monkeypatch.setattr(cases, "NEIGHBOURS", 10)
    row = measure(run, tmp_path / "some.json", dataclasses.replace(plan, samples=30))[0]
    assert row["authenticity"] == 0


def test_what_is_done_is_not_done_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "figures.json"
    calls: list[str] = []
    figures_of = cases.figures_of

    def counted(*arguments: Any) -> dict:
        calls.append("")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return figures_of(*arguments)

    monkeypatch.setattr(cases, "figures_of", counted)
    with pytest.raises(KeyboardInterrupt):
        measure(run, out)
    assert not out.exists()
    first = measure(run, out)
    assert len(calls) == 5  # two rows were there; the third was begun again
    assert measure(run, out) == first
    assert len(calls) == 5


def test_several_processes_give_the_same(run: Path, tmp_path: Path) -> None:
    pool = Pool(2)
    try:
        rows = pool.run(measure_on_ranks, 2, run, tmp_path / "two.json")
    finally:
        pool.close()
    assert rows[0] == rows[1]
    for one, two in zip(measure(run, tmp_path / "one.json"), rows[0], strict=True):
        for name in ("frechet", "kernel", "precision", "recall", "density", "coverage", "sliced_w2"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-7), name
    assert json.loads((tmp_path / "two.json").read_text())["processes"] == 2


def test_statistics_of_other_pictures_or_of_another_network_are_refused(run: Path, tmp_path: Path) -> None:
    other = source_from_arrays(np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8))
    path = gather_statistics(other, "zeros", network_of(run), tmp_path / "other.safetensors", 9, ALONE)
    plan = dataclasses.replace(PLAN, statistics=path)
    with pytest.raises(ValueError, match=r"is of pictures \[3, 16, 16\], and this run draws \[3, 8, 8\]"):
        measure(run, tmp_path / "x.json", plan)
    network = FeatureNetwork(run.parent / "small.pt", Preprocessing(13), CPU)
    with pytest.raises(ValueError, match="made with size=12 of the feature network, and this is 13"):
        evaluate(run, load_run(run), network, plan, tmp_path / "x.json", ALONE)
    assert not (tmp_path / "x.json").exists()


def test_pictures_of_the_same_size_but_not_of_this_run_have_no_neighbours_shown(run: Path, tmp_path: Path) -> None:
    other = source_from_arrays(np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), np.uint8))
    path = gather_statistics(other, "others", network_of(run), tmp_path / "other.safetensors", 9, ALONE)
    measure(run, tmp_path / "x.json", dataclasses.replace(PLAN, statistics=path, calls=(1,)))
    assert not list((tmp_path / "x").glob("nearest*"))
    assert list((tmp_path / "x").glob("samples*"))


def test_data_that_have_changed_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "open_source", lambda *_: source_from_arrays(np.zeros((9, 8, 8, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"is not what .* was trained on\. Give --statistics FILE"):
        measure(run, tmp_path / "x.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 5}, "at least 6 samples, got 5"),
        ({"calls": (0,)}, r"each at least 1; got \[0\]"),
        ({"scales": ()}, r"scales must be given, without repetition; got \[\]"),
        ({"seeds": (1, 1)}, r"seeds must be given, without repetition; got \[1, 1\]"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_plans_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, **options)


def test_samples_are_those_of_sample_whatever_the_batch(run: Path) -> None:
    """Also where fresh noise comes in between calls."""
    trained = load_run(run)
    for method in ("jump", "euler", "consistency"):
        drawer = Drawer(trained, method)
        parts = [drawer(Case(2, 1.5, 7), numbers) for numbers in (range(5), range(5, 11))]
        whole = to_pictures(draw(trained.flow, torch.arange(11) % 3, 1.5, 2, seed=7, method=method))
        assert (torch.cat(parts).int() - whole.int()).abs().max() <= 1


def test_networks_without_blocks_stay_in_float32(run: Path, tmp_path: Path) -> None:
    class Other(torch.nn.Module):
        pass

    trained = load_run(run)
    plan = dataclasses.replace(PLAN, precision="bfloat16", calls=(1,), seeds=(0,))
    evaluate(run, trained, network_of(run), plan, tmp_path / "low.json", ALONE)
    assert json.loads((tmp_path / "low.json").read_text())["precision"] == "bfloat16"
    assert trained.flow.network.blocks[0].mlp.fc1.compute_dtype == torch.bfloat16
    trained.flow.network = Other()
    assert evaluation._compute_in(trained, PLAN, ALONE) is None
    with pytest.raises(ValueError, match="--precision bfloat16: Other computes in float32 only"):
        evaluation._compute_in(trained, plan, ALONE)


def test_one_seed_has_no_deviation() -> None:
    row = {"nfe": 1, "w": 2.0, "seed": 4, "frechet": 3.0, "nearest": {}}
    assert averaged([row]) == [{"nfe": 1, "w": 2.0, "seeds": [4], "frechet": 3.0}]


def test_the_statistics_of_the_run_are_kept(run: Path, tmp_path: Path) -> None:
    measure(run, tmp_path / "x.json", dataclasses.replace(PLAN, calls=(1,), seeds=(0,)))
    saved = read_statistics(tmp_path / "x" / "statistics.safetensors")
    assert saved.provenance["data"] == str(run.parent / "data.npz")
    assert len(saved.features) == 40


def test_the_statistics_that_are_there_are_used_if_this_code_made_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an evaluation made for itself and was killed before its first row."""
    path = tmp_path / "x" / "statistics.safetensors"
    source, name = npz_source(run.parent / "data.npz"), str(run.parent / "data.npz")
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "CODE", ("metrics/features.py",))
        gather_statistics(source, name, network_of(run), path, 40, ALONE)
    assert read_statistics(path).provenance["code"] != statistics.made_by()["code"]
    plan = dataclasses.replace(PLAN, calls=(1,), seeds=(0,))
    measure(run, tmp_path / "x.json", plan)
    assert read_statistics(path).provenance["code"] == statistics.made_by()["code"]
    monkeypatch.setattr(evaluation, "gather_statistics", None)  # not again
    measure(run, tmp_path / "x.json", plan)
    # with figures of other statistics there, they are refused before the file is made anew
    monkeypatch.setattr(statistics, "version", lambda name: "another")
    with pytest.raises(ValueError, match=r"is of another evaluation, with statistics\.pillow .*\(here another\)"):
        measure(run, tmp_path / "x.json", plan)
