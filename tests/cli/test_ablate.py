"""`tvmatch ablate` as a command."""

from pathlib import Path

import pytest

from tvmatch.ablation import ablating, report
from tvmatch.ablation.ablating import Plan
from tvmatch.ablation.studies import STUDIES
from tvmatch.cli.main import main


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What would be run, instead of running it."""
    plans: list[Plan] = []

    def note(plan: Plan, out: Path, *rest: object) -> None:
        plans.append(plan)
        out.mkdir()
        (out / "ablations.md").write_text("the tables")

    monkeypatch.setattr(ablating, "ablate", note)
    return plans


def test_studies_and_grids_become_plans(asked: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["ablate", "jvp", "--vary", "jumps=near,far", "--set", "steps=7", "--nfe", "1", "8", "--w", "2"]
    assert main([*arguments, "--seeds", "4", "--out", str(tmp_path / "out")]) == 0
    (plan,) = asked
    assert list(plan.studies) == ["jvp", "grid"]
    assert plan.seeds == 4
    assert plan.calls == (1, 8)
    assert {cell.scales for cell in plan.cells().values()} == {(2.0,)}
    assert {cell.config.steps for cell in plan.cells().values()} == {7}
    assert {cell.config.jumps for _, _, cell in plan.rows("grid")} == {"near", "far"}
    assert "the tables" in capsys.readouterr().out


def test_what_draws_is_asked_for_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    assert main(["ablate", "--vary", "target_ema=0,0.9", "--set", "steps=1", "--out", str(tmp_path / "out")]) == 2
    assert "drawing needs matplotlib; install it with: pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jvp", "--set", "steps=2", "steps=3"], "--set steps is given twice, 2 and 3"),
        (["all", "jvp"], "'all' stands alone"),
    ],
)
def test_what_contradicts_itself_is_refused(
    asked: list[Plan], tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert main(["ablate", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not asked


def test_all_studies_on_the_task_that_was_asked_for(asked: list[Plan], tmp_path: Path) -> None:
    assert main(["ablate", "all", "--task", "pictures", "--out", str(tmp_path / "out")]) == 0
    assert set(asked[0].studies) == set(STUDIES)
    assert {cell.task for cell in asked[0].cells().values()} == {"pictures"}


def test_the_list_names_every_study(capsys: pytest.CaptureFixture) -> None:
    assert main(["ablate", "--list"]) == 0
    assert set(STUDIES) == {line.split(":")[0] for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a study"),
        (["jvpp"], "no study is called 'jvpp'; did you mean 'jvp'"),
        (["jvp", "--set", "steps=1,2"], "--set gives every run one value"),
        (["jvp", "--w", "0"], "must be positive and finite"),
        (["jvp", "--seeds", "0"], "seeds must be at least 1"),
        (["jvp", "--nfe", "0"], "calls must be at least 1"),
        (["jvp", "--workers", "0"], "workers must be at least 1"),
        (["jvp", "--nfe", "1", "1"], "nfe must be given without repetition, got [1, 1]"),
        (["jvp", "--w", "1.5", "2", "1.5"], "w must be given without repetition, got [1.5, 2.0, 1.5]"),
        (["--vary", "steps=2,2"], "steps must be given without repetition, got [2, 2]"),
        (["--vary", "steps=2", "--set", "steps=3"], "--set steps=3: the study 'grid' varies it; leave it out"),
        (["target-ema", "--set", "target_ema=0.5"], "--set target_ema=0.5: the study 'target-ema' varies it"),
        (["recipe", "--set", "steps=3"], "--set steps=3: the study 'recipe' sets it; leave it out"),
        (["network", "--task", "points"], "MLP-128x3 has no option qk_norm"),
        (["--vary", "target_ema=1"], r"target_ema must be in [0, 1), got 1.0"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["ablate", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()
