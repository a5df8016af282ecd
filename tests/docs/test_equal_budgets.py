"""The commands of docs/methods.md are those of the committed results, and equal arithmetic means equal passes."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield import_module("methods_runs")
    for name in set(sys.modules) - before:
        if (ROOT / "benchmarks" / f"{name}.py").exists():
            del sys.modules[name]


def asked_by(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command on the page that begins so would run."""
    lines = rf"^    python benchmarks/({re.escape(command)}(?:.*\\\n)*.*?)(?: {{3,}}[0-9]+ runs.*)?$"
    found = re.search(lines, PAGE, flags=re.MULTILINE)
    assert found is not None
    name, *arguments = shlex.split(found[1].replace("\\\n", " "))
    module, asked = import_module(name.removesuffix(".py")), {}

    def note(jobs, measure, options, head):
        asked.update(jobs=jobs, head=head, out=options.out)
        raise SystemExit("noted")

    monkeypatch.setattr(module, "run_all", note)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit, match="noted"):
        module.main()
    return asked


@pytest.mark.parametrize(
    ("command", "results"),
    [
        ("methods_2d.py --workers 14 --seconds 24", "methods_2d"),
        ("methods_digits.py --workers 14 --seconds 58", "methods_digits"),
        ("methods_digits.py --network UNet-Tiny --seconds 150", "methods_digits_unet"),
        ("methods_digits.py --network UNet-Tiny --passes 1400", "methods_digits_unet_passes"),
        ("methods_digits.py --passes 3700", "methods_digits_groups"),
    ],
)
def test_the_documented_command_continues_the_committed_results(
    command: str, results: str, runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same training, and the same runs in all; on another machine it asks for another --out."""
    asked = asked_by(command, monkeypatch)
    kept = json.loads((ROOT / "benchmarks" / "results" / f"{results}.json").read_text())
    assert asked["out"].name == f"{results}.json"
    head = {key: value for key, value in asked["head"].items() if key != "machine"}
    assert {key: kept[key] for key in head} == json.loads(json.dumps(head))
    assert len(asked["jobs"]) == kept["planned_runs"]
    done = [{key: row[key] for key in asked["jobs"][0]} for row in kept["runs"]]
    assert all(job in asked["jobs"] for job in done)


def test_the_command_of_equal_arithmetic_is_ready(runs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_by("methods_2d.py --passes 4000", monkeypatch)
    assert asked["out"].name == "methods_2d_passes.json"
    assert len(asked["jobs"]) == 3 * 3 * 13
    assert asked["head"]["training"]["passes"] == 4000


def test_equal_passes_are_steps_in_inverse_proportion(runs) -> None:
    plane, digits = (runs.Training(seconds=None, passes=4400, guided=guided) for guided in (False, True))
    assert plane.steps_of(runs.METHODS["terminal-velocity"]) == 440  # 10 passes without guidance
    assert digits.steps_of(runs.METHODS["terminal-velocity"]) == 400
    assert plane.steps_of(runs.VARIANTS["terminal-velocity, every 4th"]) == round(4400 / 4.75)
    assert plane.steps_of(runs.METHODS["flow-matching"]) == round(4400 / 3)
    assert runs.Training().steps_of(runs.METHODS["flow-matching"]) is None
    with pytest.raises(ValueError, match="one of seconds, steps and passes"):
        runs.Training(passes=10)
