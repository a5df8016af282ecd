"""The tables of docs/theory.md, docs/ablations.md and docs/methods.md are those of the committed results."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    import ablation_figures

    yield ablation_figures
    for name in set(sys.modules) - before:
        if (ROOT / "benchmarks" / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.parametrize("page", ["theory.md", "ablations.md", "methods.md"])
def test_tables_are_those_of_the_results(page: str, figures) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert figures.filled(page, text) == text, "run: python benchmarks/ablation_figures.py"
    with pytest.raises(ValueError, match="must have the marker"):
        figures.filled(page, "a page without markers")


def test_the_cost_of_a_step_is_told_beside_that_of_flow_matching(figures) -> None:
    result = json.loads((RESULTS / "methods_cost_h200.json").read_text())
    lines = figures.cost_table(result).splitlines()
    assert "| flow-matching | 29.0 | 1.00 | 1.00 | 12.9 | 1.00 |" in lines
    assert lines[-1].startswith("| terminal-velocity | 95.1 | 3.28 | 3.33 |")  # the dearest
    assert len(lines) == 4 + len(result["rows"])
    result["rows"][-1]["milliseconds"] = 1e3
    assert figures.cost_table(result).splitlines() != lines


def test_the_methods_for_cifar10_are_those_that_the_criterion_says(figures) -> None:
    plane, digits = (json.loads((RESULTS / f"methods_{name}.json").read_text()) for name in ("2d", "digits"))
    first, second, *_ = figures.chosen_table(plane, digits).splitlines()[2:]
    assert first.startswith("| inductive-moment-matching |")
    assert second.startswith("| consistency-training |")
    for row in digits["summary"]:
        row["frechet"]["mean"] += 10 * (row["method"] == "inductive-moment-matching")
    assert figures.chosen_table(plane, digits).splitlines()[2].startswith("| consistency-training |")


def test_the_short_table_of_longer_jumps_is_that_of_the_study() -> None:
    page = (ROOT / "docs" / "ablations.md").read_text()
    study = json.loads((RESULTS / "methods_ablations.json").read_text())["studies"]["recipe"]
    for name in study["cells"]:
        rows = {row["nfe"]: row for row in study["summary"] if (row["variant"], row["w"]) == (name, 1.5)}
        told = [f"{rows[calls]['frechet']['mean']:.3f}" for calls in (1, 2, 4)]
        assert f"| {name} | {' | '.join(told)} |" in page.replace("**", "")
