"""The CIFAR-10 tables of docs/evaluation.md are those of the committed runs, and so are the figures told elsewhere."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cifar10"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cifar10_figures

    yield cifar10_figures
    for name in ("cifar10_figures", "cifar10_runs"):
        sys.modules.pop(name, None)


def test_tables_are_those_of_the_runs(figures) -> None:
    text = figures.PAGE.read_text()
    runs = figures.read_runs(RESULTS)
    assert figures.filled(text, runs) == text, "run: python benchmarks/cifar10_figures.py"
    assert figures.filled(text, runs[1:]) != text
    with pytest.raises(ValueError, match="must have the marker"):
        figures.filled("a page without markers", runs)


def test_recipe_readme_and_pages_tell_what_was_measured(figures) -> None:
    first = {run.method: run for run in figures.read_runs(RESULTS) if run.seed == 0}
    script = (ROOT / "runs" / "cifar10_1gpu.sh").read_text()
    for method, line in (("tvm", "terminal-velocity"), ("mean_flow", "mean-flow"), ("flow_matching", "flow-matching")):
        told = next(row for row in script.splitlines() if row.startswith(f"#   {line}  "))
        values = [first[method].frechet(calls) for calls in (1, 2, 4)]
        numbers = [float(word) for word in told.split("(")[0].split()[2:] if word != "/"]
        assert numbers == pytest.approx(values, rel=0.003)
    values = [f"{first['tvm'].frechet(calls):.1f}" for calls in (1, 2, 4)]
    assert f"| {' | '.join(f'**{value}**' for value in values)} |" in (ROOT / "README.md").read_text()
    assert f"| {' | '.join(values)} |" in (ROOT / "docs" / "methods.md").read_text()
    assert f"FID-20k {' / '.join(values)}" in (ROOT / "docs" / "paper_map.md").read_text()


def test_pictures_are_drawn_and_a_misnamed_folder_is_refused(figures, tmp_path: Path) -> None:
    runs = figures.read_runs(RESULTS)
    figures.draw(runs, tmp_path / "frechet.png")
    figures.draw_samples(tmp_path / "samples.png")
    drawn, kept = (np.asarray(Image.open(p)) for p in (tmp_path / "samples.png", ROOT / "docs/images/cifar10.png"))
    assert np.array_equal(drawn[44:], kept[44:])  # under the names, whose letters another Pillow may draw otherwise
    assert (tmp_path / "frechet.png").stat().st_size > 10_000
    shutil.copytree(RESULTS / "tvm_420s_seed0", tmp_path / "runs" / "tvm_420s_seed3")
    with pytest.raises(ValueError, match="another seed"):
        figures.read_runs(tmp_path / "runs")
    (tmp_path / "runs" / "tvm_420s_seed3").rename(tmp_path / "runs" / "tvm")
    with pytest.raises(ValueError, match="METHOD_SECONDSs_seedN"):
        figures.read_runs(tmp_path / "runs")


def test_labels_beside_lines_keep_their_distance(figures) -> None:
    assert figures.spread([1.0, 5.0, 1.1, 1.15], 0.2) == pytest.approx([1.0, 5.0, 1.2, 1.4])
