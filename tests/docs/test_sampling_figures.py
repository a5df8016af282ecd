"""The table of sampling speed in docs/evaluation.md is that of the committed result."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import sampling_figures

    yield sampling_figures
    sys.modules.pop("sampling_figures", None)


def test_the_table_is_that_of_the_result(figures) -> None:
    text, result = figures.PAGE.read_text(), json.loads(figures.RESULT.read_text())
    assert figures.filled(text, result) == text, "run: python benchmarks/sampling_figures.py"
    assert "compare rows of one commit" in text
    result["rows"][0]["milliseconds"] += 1
    assert figures.filled(text, result) != text


def test_what_meets_its_bar_is_bold_and_what_was_not_run_is_empty(figures) -> None:
    rows = [{"mode": "eager", "batch": 1, "milliseconds": 4.99}, {"mode": "graph", "batch": 1, "milliseconds": 5.0}]
    rows += [{"mode": "eager", "batch": 64, "images_per_second": 1800.0}]
    rows = [row | {"commit": "abc"} for row in rows] + [rows[1] | {"commit": "def", "milliseconds": 6.0}]
    told = {"rows": rows, "torch": "2.11.0+cu130", "device": "GPU"}
    lines = figures.table(told).splitlines()
    assert lines[2:4] == ["| eager | abc | **4.99 ms** | **1,800** |", "| graph | abc | 5.00 ms |  |"]
    assert lines[4] == "| graph | def | 6.00 ms |  |"
    assert lines[-1] == "GPU, torch 2.11.0."
