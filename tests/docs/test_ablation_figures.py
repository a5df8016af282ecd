"""The tables of docs/theory.md, docs/ablations.md and docs/methods.md are those of the committed results."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["theory.md", "ablations.md", "methods.md"])
def test_tables_are_those_of_the_results(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ablation_figures

    text = (ROOT / "docs" / page).read_text()
    assert ablation_figures.filled(page, text) == text, "run: python benchmarks/ablation_figures.py"
    with pytest.raises(ValueError, match="must have the marker"):
        ablation_figures.filled(page, "a page without markers")
    for name in ("ablation_figures", "bound", "gradient_norms", "methods_tables", "methods_plot"):
        sys.modules.pop(name, None)
