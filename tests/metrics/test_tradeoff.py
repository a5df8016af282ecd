"""The table and the plot of guidance and calls show the figures that they name."""

from pathlib import Path

import pytest

from tvmatch.metrics.tradeoff import plot, table

ROWS = [
    {"nfe": nfe, "w": w, "frechet": 10 * nfe + w, "frechet_over_seeds": 0.25, "kernel": 0.001 * w, "precision": w / 10}
    | {"recall": nfe / 10}
    for nfe in (1, 2)
    for w in (2.0, 1.0)
]


def test_the_table_tells_deviations() -> None:
    lines = table(ROWS).splitlines()
    assert lines[0] == "| calls | w | Frechet | kernel x1000 | precision | recall |"
    assert lines[2] == "| 1 | 2 | 12.00 ± 0.25 | 2.000 | 0.200 | 0.100 |"


def test_the_plot_shows_frechet_distances_with_error_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    assert plot(ROWS, tmp_path / "plot.png")
    left, right = drawn[0].axes
    for nfe, (line, _, bars) in zip((1, 2), left.containers, strict=True):
        assert line.get_xydata().tolist() == [[1, 10 * nfe + 1], [2, 10 * nfe + 2]]
        assert bars[0].get_segments()[0].tolist() == [[1, 10 * nfe + 0.75], [1, 10 * nfe + 1.25]]
    assert left.get_ylabel() == "Frechet distance"
    assert [line.get_xydata().tolist() for line in right.lines] == [[[0.1, n], [0.2, n]] for n in (0.1, 0.2)]
