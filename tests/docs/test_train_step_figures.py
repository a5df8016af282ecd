"""The figures of training steps: what each row must say, and that the pages say the same."""

import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from tvmatch.training.bench import StepCase

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
    assert guided == pytest.approx(362.4 / 141.7, rel=1e-3)
    assert unguided == pytest.approx(362.4 / 112.0, rel=1e-3)


def test_a_first_step_meets_its_bar_only_where_nothing_was_compiled_before(tables: ModuleType) -> None:
    row = {"network": "DiT-XL/2", "data": "4x32x32", "batch": 64, "policy": "none", "objective": "terminal-velocity"}
    row |= {"guidance": "2", "terminal_every": 1, "gpus": 1, "compile_seconds": 33.78}
    assert tables.first(row | {"cold": True}) == "**34 s** (60)"
    assert tables.first(row | {"cold": True, "compile_seconds": 60.42}) == "60 s (60)"
    assert tables.first(row | {"cold": False}) == "34 s, warm"
    assert tables.first(row) == "34 s (60)"  # nobody wrote down what it found


def test_the_rows_say_what_the_notes_say_of_their_caches(tables: ModuleType) -> None:
    assert [row["cold"] for row in tables.rows_of(tables.LATEST)] == [True] + [False] * 9
    rows, notes = tables.rows_of(tables.EARLIER), json.loads(tables.EARLIER.read_text())["notes"]
    assert "compile_seconds is not of an empty cache" in notes
    assert "the second's (24 s) and both of two GPUs' found some of their code compiled" in notes
    assert "their first steps after the first found some of their code compiled" in notes  # of d689e99
    warm = [row for row in rows if row["visit"] in ("7b1f52d", "7fa73da, two GPUs")]
    warm += [row for row in rows if row["visit"] == "d689e99"][1:]
    for visit in ("a5cde0d", "9fbd219"):
        first, *others = (row for row in rows if row["visit"] == visit)
        assert first["cold"] is True
        warm += others
    assert [row for row in rows if row.get("cold") is False] == [row for row in rows if row in warm]
    assert "**34 s**" not in (ROOT / "docs" / "engine.md").read_text()


def test_cold_rows_are_compiled_into_empty_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    train_step = importlib.import_module("train_step")
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    (tmp_path / "full").mkdir()
    for name in names:
        monkeypatch.setenv(name, str(tmp_path / "full"))
    seen: list[set[str]] = []

    def measured(strategy: str, case: StepCase, *_: object) -> dict:
        seen.append({os.environ[name] for name in names})
        row = {"network": case.network, "data": "1x8x8", "objective": case.objective, "terminal_every": 1, "batch": 2}
        row |= {"policy": case.recompute, "strategy": strategy, "fsdp_gather": None, "graph": False, "ranks": 1}
        return (
            row | dict.fromkeys(("images_per_second", "milliseconds", "mfu", "compile_seconds"), 1.0) | {"peak_gib": 1}
        )

    monkeypatch.setattr(train_step, "measure_with", measured)
    monkeypatch.setattr(train_step, "matmul_tflops", lambda device: 1.0)
    cold = {}
    for option in ("--cold", "--tiny"):
        arguments = ["train_step.py", "--tiny", "--cases", "0", "1", "--json", str(tmp_path / "rows.json"), option]
        monkeypatch.setattr("sys.argv", arguments)
        train_step.main()
        cold[option] = [row.get("cold") for row in json.loads((tmp_path / "rows.json").read_text())["rows"]]
    assert cold == {"--cold": [True, False], "--tiny": [None, False]}
    assert str(tmp_path / "full") not in seen[0]
    assert len(seen[0]) == 2
    assert not any(Path(folder).exists() for folder in seen[0])
    assert seen[2] == {str(tmp_path / "full")}
    assert all(os.environ[name] == str(tmp_path / "full") for name in names)


def test_the_wait_for_the_first_step_is_told_as_measured() -> None:
    result = json.loads((RESULTS / "first_step_h200.json").read_text())
    page = " ".join((ROOT / "docs" / "engine.md").read_text().split())
    (cold, cold_wall), (warm, warm_wall) = (
        (row["seconds_until_first_step"], row["seconds_on_the_wall"]) for row in result["rows"]
    )
    assert f"**{cold:.1f} s** with nothing compiled" in page
    assert f"{cold_wall:.1f} s from the start of Python), {warm:.1f} s at the next start ({warm_wall:.1f} s)" in page
    assert cold < result["bar"]
    assert f"So the bar of {result['bar']} is met" in page
    assert f"Measured at {result['commit']}, alone on a machine of one GPU and {result['cores']} cores" in page
    readme = (ROOT / "README.md").read_text()
    assert (
        f"| {cold:.0f} s; {cold_wall:.0f} s from Python's start; {warm:.0f} s the next time | bar 60: met |" in readme
    )


def test_what_muon_costs_is_told_as_measured(tables: ModuleType) -> None:
    rows = {(row["network"], tables.muon(row), row["terminal_every"], row["policy"], row["batch"]): row
            for row in tables.rows_of(tables.LATEST)
            if row["objective"] == tables.TVM}  # fmt: skip
    page = " ".join((ROOT / "docs" / "engine.md").read_text().split())
    for network, every, batch in (("DiT-XL/2", 1, 64), ("DiT-S/2", 4, 512)):
        adamw, muon = (rows[network, yes, every, "none", batch]["milliseconds"] for yes in (False, True))
        assert f"{network} {adamw:.1f} to {muon:.1f} ms ({muon / adamw - 1:.1%})" in page


def test_a_start_is_over_when_its_first_line_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    first_figure = importlib.import_module("first_step").first_figure
    metrics = tmp_path / "metrics.jsonl"
    assert first_figure(metrics) is None
    metrics.write_text('{"step": 1, "seconds_until_first_step": 2.5}')
    assert first_figure(metrics) is None
    metrics.write_text('{"step": 1, "seconds_until_first_step": 2.5}\n{"step": 2}\n')
    assert first_figure(metrics) == 2.5
