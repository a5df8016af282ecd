"""What an ablation varies: options by name, grids, and keys that tell runs apart."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tvmatch.ablation.ablating import Plan
from tvmatch.ablation.running import changed_options, check_cell
from tvmatch.ablation.studies import STUDIES, find_study
from tvmatch.ablation.study import Cell, Study, cells_of, grid, parse_change
from tvmatch.ablation.tasks import base_config


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("target_ema=0,0.9,0.99", "target_ema", [0.0, 0.9, 0.99]),
        ("detach-jvp=on,off", "detach_jvp", [True, False]),
        ("jumps=near", "jumps", ["near"]),
        ("steps=5", "steps", [5]),
        ("guidance=1:3, 2", "guidance", ["1:3", "2"]),
        ("image_size=none,16", "image_size", [None, 16]),
        ("minutes=none,0.5", "minutes", [None, 0.5]),
        ("evaluation_ema=0.9", "evaluation_ema", [(0.9,)]),
    ],
)
def test_options_have_their_own_type(text: str, name: str, values: list[Any]) -> None:
    assert parse_change(text) == (name, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target_emma=0", "no training option is called 'target_emma'; did you mean target_ema"),
        ("steps", "give steps=VALUE"),
        ("steps=", "give steps=VALUE"),
        ("steps=few", "steps must be a whole number, got 'few'"),
        ("detach_jvp=maybe", "detach_jvp must be on or off, got 'maybe'"),
        ("target_ema=low", "target_ema must be a number, got 'low'"),
        ("minutes=few", "minutes must be a number or none, got 'few'"),
        ("seed=1,2", "seed cannot be varied: --seeds"),
        ("run=x", "run cannot be varied: --out"),
        ("evaluation_ema=0.9,0.99", "evaluation_ema cannot be varied"),
    ],
)
def test_bad_changes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_change(text)


def test_a_grid_has_every_combination() -> None:
    found = grid([("jumps", ["near", "far"]), ("scaled", [True, False])])
    assert len(found) == 4
    assert found["jumps=near, scaled=off"] == {"jumps": "near", "scaled": False}
    with pytest.raises(ValueError, match="jumps is varied twice"):
        grid([("jumps", ["near"]), ("jumps", ["far"])])
    with pytest.raises(ValueError, match=r"steps must be given without repetition, got \[2, 2\]"):
        grid([("steps", [2, 2])])


def test_keys_tell_what_can_change_a_result() -> None:
    cell = Cell("points", base_config("points"), (1.5,), (1, 2), 100)
    same = dataclasses.replace(cell, config=dataclasses.replace(cell.config, run=Path("elsewhere")))
    assert cell.key == same.key
    others = [
        dataclasses.replace(cell, config=dataclasses.replace(cell.config, seed=1)),
        dataclasses.replace(cell, config=dataclasses.replace(cell.config, jumps="near")),
        dataclasses.replace(cell, samples=101),
        dataclasses.replace(cell, calls=(1,)),
        dataclasses.replace(cell, scales=(2.0,)),
        dataclasses.replace(cell, task="pictures"),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 7


def test_the_named_studies_cover_what_the_issue_asks() -> None:
    varied = {name for study in STUDIES.values() for changes in study.variants.values() for name in changes}
    assert varied == {
        "jumps", "target_ema", "boundary_at_end", "detach_jvp", "scaled", "weighted", "guidance",
        "norm", "qk_norm", "modulation_norm", "initialisation", "terminal_every", "steps", "batch_size", "optimizer",
        "objective",
    }  # fmt: skip
    equal = [
        changes["steps"] * changes.get("batch_size", 128) * (4 + 7 / changes.get("terminal_every", 1))
        for name, changes in STUDIES["terminal-every"].variants.items()
        if name != "every 4th, no more steps"
    ]
    assert equal == pytest.approx([equal[0]] * len(equal), rel=1e-3)
    assert len(STUDIES["jumps"].variants) >= 4
    assert {0.0, 0.9, 0.999} == {c["target_ema"] for c in STUDIES["target-ema"].variants.values() if c}
    with pytest.raises(ValueError, match="did you mean 'target-ema'"):
        find_study("target-emma")


def test_every_cell_of_every_study_can_be_trained_and_is_planned_once() -> None:
    plan = Plan(STUDIES, seeds=2)
    cells = plan.cells()
    assert [cell.config.seed for cell in cells.values()] == sorted(cell.config.seed for cell in cells.values())
    rows = [row for name in STUDIES for row in plan.rows(name)]
    assert len(cells) < len(rows)  # the paper's setting is shared by studies
    for cell in cells.values():
        if cell.config.seed == 0:
            check_cell(cell)
    assert {"jumps": "near"} in [changed_options(cell) for cell in cells.values()]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (Study("", {"a": {"qk_norm": False}}), "MLP-128x3 has no option qk_norm"),
        (Study("", {"a": {"flip": True}}), "the task 'points' has data of its own; leave flip out"),
        (Study("", {"a": {"objective": "mean-flow", "detach_jvp": True}}), "mean-flow has no option detach_jvp"),
        (Study("", {"a": {"network": "DiT-S/3"}}), "no network is called 'DiT-S/3'"),
        (Study("", {"a": {"target_ema": 2.0}}), r"target_ema must be in \[0, 1\), got 2"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is(study: Study, message: str) -> None:
    def plan_and_check() -> None:
        for _, _, cell in cells_of(study, base_config(study.task), 1, (1,), 100):
            check_cell(cell)

    with pytest.raises(ValueError, match=message):
        plan_and_check()
