"""Evaluations into one place, one after another: what was measured before stays in the figures, table and plot."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.metrics.test_evaluation import PLAN, measure
from tests.metrics.test_evaluation import run as run  # the fixture
from tests.metrics.test_evaluation_hazards import figures
from tests.training.support import tiny_network
from tvmatch.metrics.cases import rows_in, write_row
from tvmatch.metrics.tradeoff import table

ONE = dataclasses.replace(PLAN, calls=(1,), seeds=(0,))


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield


def told_in(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())


def cases_in(out: Path) -> list[tuple[int, float, int]]:
    return [(row["nfe"], row["w"], row["seed"]) for row in told_in(out)["by_seed"]]


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def test_other_calls_and_another_seed_go_in_beside_what_is_there(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    first = measure(run, out, ONE)
    before = figures(out)
    rows = measure(run, out, dataclasses.replace(ONE, calls=(2,), seeds=(1,)))
    told = told_in(out)
    assert cases_in(out) == [(1, 1.5, 0), (2, 1.5, 1)]
    assert figures(out)[:1] == before
    assert told["rows"] == rows
    assert rows[0] == first[0]
    assert [(row["nfe"], row["seeds"]) for row in rows] == [(1, [0]), (2, [1])]
    assert told["seeds"] == [0, 1]
    assert told["grids"] == {"1": [1.0, 0.0], "2": [1.0, 0.5, 0.0]}
    assert (tmp_path / "x" / "table.md").read_text() == table(rows)
    assert len(table(rows).splitlines()) == 4
    pictures = {path.name for path in (tmp_path / "x").glob("samples_*.png")}
    assert pictures == {"samples_nfe1_w1.5_seed0.png", "samples_nfe2_w1.5_seed1.png"}
    measure(run, out, ONE)  # nothing new: nothing is lost
    assert cases_in(out) == [(1, 1.5, 0), (2, 1.5, 1)]


def test_seeds_one_after_another_give_the_same_as_at_once(run: Path, tmp_path: Path) -> None:
    for seed in (3, 0):
        measure(run, tmp_path / "x.json", dataclasses.replace(PLAN, seeds=(seed,)))
    at_once = measure(run, tmp_path / "y.json", PLAN)
    assert without_seconds(told_in(tmp_path / "x.json")["rows"]) == without_seconds(at_once)
    assert at_once[0]["frechet_over_seeds"] > 0
    assert "±" in (tmp_path / "x" / "table.md").read_text()


def test_uneven_combinations(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of one scale, one of another: each has the seeds that it has, and only the first an error bar. What
    must be known of the first scale is kept, too."""
    figure = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    out = tmp_path / "x.json"
    measure(run, out, dataclasses.replace(ONE, scales=(1.0,), seeds=(0, 1)))
    low, high = measure(run, out, dataclasses.replace(ONE, scales=(1.5,)))
    assert cases_in(out) == [(1, 1.0, 0), (1, 1.0, 1), (1, 1.5, 0)]
    assert (low["w"], low["seeds"], high["w"], high["seeds"]) == (1.0, [0, 1], 1.5, [0])
    assert "frechet_over_seeds" in low
    assert "frechet_over_seeds" not in high
    heading, _, one, two, *remarks = (tmp_path / "x" / "table.md").read_text().splitlines()
    assert heading.startswith("| calls | w | seeds | Frechet |")
    assert one.startswith(f"| 1 | 1 | 2 | {low['frechet']:.2f} ± ")
    assert two.startswith(f"| 1 | 1.5 | 1 | {high['frechet']:.2f} | ")
    assert [remark for remark in remarks if remark] == told_in(out)["remarks"]
    assert any(remark.startswith("w=1 was not seen in training") for remark in remarks)
    (line, _, bars) = drawn[-1].axes[0].containers[0]
    assert line.get_xydata().tolist() == [[1.0, low["frechet"]], [1.5, high["frechet"]]]
    ends = [segment.tolist() for segment in bars[0].get_segments() if len(segment)]
    deviation = low["frechet_over_seeds"]
    assert ends[0] == [[1.0, low["frechet"] - deviation], [1.0, low["frechet"] + deviation]]
    assert not any(value == value for _, value in (ends[1] if len(ends) > 1 else []))  # of one seed no bar at all


def test_rows_that_are_of_something_else_are_not_taken(run: Path, tmp_path: Path) -> None:
    """Of another identity, cut short, or under the name of another case."""
    out, rows = tmp_path / "x.json", tmp_path / "x" / "rows"
    measure(run, out, ONE)
    saved = json.loads((rows / "nfe1_w1.5_seed0.json").read_text())
    other = saved["identity"] | {"a pin": "that is not known here"}
    write_row(tmp_path / "x", saved["row"] | {"seed": 8}, other)
    (rows / "nfe1_w1.5_seed9.json").write_text(json.dumps(saved))
    (rows / "nfe1_w1.5_seed10.json").write_text(json.dumps(saved)[:-9])
    (rows / "nfe1_w1.5_seed11.json").write_text(json.dumps({"identity": saved["identity"], "row": 3}))
    measure(run, out, dataclasses.replace(ONE, calls=(2,)))
    assert cases_in(out) == [(1, 1.5, 0), (2, 1.5, 0)]
    assert rows_in(tmp_path / "x", saved["identity"] | {"samples": 25}) == {}


def test_figures_whose_folder_is_gone_are_kept(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    measure(run, out, ONE)
    before = figures(out)
    keep = (tmp_path / "x" / "statistics.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "x")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "statistics.safetensors").write_bytes(keep)
    measure(run, out, dataclasses.replace(ONE, seeds=(1,)))
    assert cases_in(out) == [(1, 1.5, 0), (1, 1.5, 1)]
    assert figures(out)[:1] == before
