"""The figures of training steps: what each row must say, and that the pages say the same."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FILES = sorted(path.name for path in RESULTS.glob("train_step_*.json"))
KEYS = {
    *("network", "objective", "batch", "policy", "gpus", "strategy"),
    *("images_per_second", "peak_gib", "mfu", "compile_seconds"),
}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("train_step_tables")


@pytest.mark.parametrize("name", FILES)
def test_every_row_has_the_keys_of_the_issue_and_its_commit(name: str) -> None:
    result = json.loads((RESULTS / name).read_text())
    assert {"device", "torch", "rows"} <= result.keys()
    for row in result["rows"]:
        assert (KEYS | {"commit", "data", "guidance", "terminal_every"}) - row.keys() == set(), row
        assert 0 < row["mfu"] < 1
        assert row["images_per_second"] == pytest.approx(
            row["gpus"] * row["batch"] / row["milliseconds"] * 1e3, rel=2e-3
        )


def test_the_latest_file_is_of_one_run(tables: ModuleType) -> None:
    rows = tables.rows_of(tables.LATEST)
    assert len({(row["commit"], row["matmul_tflops"]) for row in rows}) == 1
    measured = {(row["network"], row["data"], row["batch"], row["policy"]) for row in rows}
    assert tables.BARS.keys() <= measured


@pytest.mark.parametrize("name", ["engine.md", "distributed.md"])
def test_the_pages_have_these_figures(tables: ModuleType, name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert tables.filled(name, text) == text, "run: python benchmarks/train_step_tables.py"


def test_a_bar_that_is_missed_is_not_bold(tables: ModuleType) -> None:
    row = {"network": "DiT-XL/2", "data": "4x32x32", "batch": 64, "policy": "full", "objective": "terminal-velocity"}
    row |= {"guidance": "2", "terminal_every": 1, "gpus": 1, "images_per_second": 149.02, "peak_gib": 53.47}
    assert (tables.rate(row), tables.memory(row)) == ("**149.0** (115)", "53.5 (40)")
    assert tables.rate(row | {"gpus": 2}) == "149.0"


def test_the_ratio_is_of_guided_steps_and_of_an_unguided_one(tables: ModuleType) -> None:
    guided, unguided = tables.ratios(tables.rows_of(tables.LATEST))
    assert guided == pytest.approx(367.75 / 143.25, rel=1e-4)
    assert unguided == pytest.approx(367.75 / 112.09, rel=1e-4)
