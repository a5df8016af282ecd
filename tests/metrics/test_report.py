import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.support import tiny_config, tiny_network
from tvmatch.data.arrays import source_from_arrays
from tvmatch.data.digits import digits_source
from tvmatch.data.source import to_unit_range
from tvmatch.metrics import report
from tvmatch.metrics.report import evaluate_run
from tvmatch.training.loop import train
from tvmatch.training.trained import TrainedRun, load_run


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield


def digits_run(folder: Path) -> tuple[Path, TrainedRun]:
    train(tiny_config(folder / "run", learning_rate=1e-2), show=False)
    return folder / "run", load_run(folder / "run")


def test_one_row_for_each_scale_and_number_of_calls(tmp_path: Path) -> None:
    run, trained = digits_run(tmp_path)
    rows = evaluate_run(run, trained, (1, 2), (1.5, 1.0), samples=20, seed=0)
    assert [(row["nfe"], row["w"]) for row in rows] == [(1, 1.5), (2, 1.5), (1, 1.0), (2, 1.0)]
    assert all(0 <= row["class_accuracy"] <= 1 for row in rows)
    assert len({row["frechet"] for row in rows}) == 4
    assert rows == evaluate_run(run, trained, (1, 2), (1.5, 1.0), samples=20, seed=0)
    assert rows != evaluate_run(run, trained, (1, 2), (1.5, 1.0), samples=20, seed=1)


def test_real_digits_score_perfectly_and_shuffled_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real digits of the class asked for in place of samples, the figures are those of perfection."""
    run, trained = digits_run(tmp_path)
    source = digits_source()

    def real(flow: object, label: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        members = [np.flatnonzero(source.labels == digit) for digit in range(10)]
        chosen = [members[digit][i // 10 % len(members[digit])] for i, digit in enumerate(label.tolist())]
        return to_unit_range(torch.from_numpy(source.batch(np.array(chosen))))

    monkeypatch.setattr(report, "draw", real)
    perfect = evaluate_run(run, trained, (1,), (1.5,), samples=1300, seed=0)[0]
    assert perfect["class_accuracy"] > 0.98
    assert perfect["frechet"] < 0.05
    monkeypatch.setattr(report, "draw", lambda flow, label, *a, **k: real(flow, label.flip(0)))
    wrong = evaluate_run(run, trained, (1,), (1.5,), samples=1300, seed=0)[0]
    assert wrong["class_accuracy"] < 0.2
    monkeypatch.setattr(report, "draw", lambda flow, label, *a, **k: -real(flow, label))
    assert evaluate_run(run, trained, (1,), (1.5,), samples=1300, seed=0)[0]["frechet"] > 100 * perfect["frechet"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"samples": 1}, "at least 2 samples, got 1"),
        ({"calls": ()}, r"nfe must be one number.*got \[\]"),
        ({"calls": (1, -1)}, r"nfe must be one number.*got \[1, -1\]"),
        ({"scales": ()}, "no guidance scale w was given"),
        ({"scales": (1.5, -1.0)}, "w must be positive and finite.*got -1"),
        ({"method": "heun"}, "method must be jump or euler or consistency, got 'heun'"),
    ],
)
def test_bad_requests_are_named(tmp_path: Path, keywords: dict, message: str) -> None:
    run, trained = digits_run(tmp_path)
    with pytest.raises(ValueError, match=message):
        evaluate_run(run, trained, **({"calls": (1,), "scales": (1.5,), "samples": 4, "seed": 0} | keywords))


def test_other_data_than_it_was_trained_on_is_refused(tmp_path: Path) -> None:
    """A relative path may lead elsewhere today; figures against other pictures would be wrong without a word."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    config = tiny_config(tmp_path / "run", data=str(tmp_path / "data.npz"), steps=1)
    train(config, show=False)
    trained = load_run(config.run)
    keywords = {"calls": (1,), "scales": (1.0,), "samples": 4, "seed": 0}
    assert "class_accuracy" not in evaluate_run(config.run, trained, **keywords)[0]  # the judge knows digits only
    np.savez(tmp_path / "data.npz", images=images[:, ::-1])
    with pytest.raises(ValueError, match=r"data '.*data\.npz' is not what .*run was trained on"):
        evaluate_run(config.run, trained, **keywords)
    np.savez(tmp_path / "data.npz", images=images[..., :1])
    with pytest.raises(ValueError, match="now holds pictures"):
        evaluate_run(config.run, trained, **keywords)


def test_a_source_of_ones_own_is_not_judged_as_digits(tmp_path: Path) -> None:
    """`train(config, source=...)` leaves data: digits in config.yaml."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    source = source_from_arrays(images, np.arange(20) % 10)
    config = dataclasses.replace(tiny_config(tmp_path / "run", steps=1), data="digits")
    train(config, source=source, show=False)
    with pytest.raises(ValueError, match="data 'digits' is not what"):
        evaluate_run(config.run, load_run(config.run), (1,), (1.5,), samples=4, seed=0)
