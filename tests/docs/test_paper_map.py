"""docs/paper_map.md: every path, test and command that it names is there, and every row says all six things."""

import ast
import contextlib
import functools
import io
import re
import shlex
from pathlib import Path

import pytest

from tvmatch.ablation.studies import STUDIES
from tvmatch.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/paper_map.md").read_text()
COLUMNS = ("code", "test", "command", "here", "published")


def table_rows(text: str) -> list[dict[str, str]]:
    """Every row of the page's tables, by the names of the columns."""
    found: list[dict[str, str]] = []
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        header, _, *lines = [
            [cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()
        ]
        found += [dict(zip(["claim", *header[1:]], line, strict=True)) for line in lines]
    return found


ROWS = table_rows(PAGE)


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@functools.cache
def help_of(command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    return out.getvalue()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["claim"][:40])
def test_a_row_names_what_is_there(row: dict[str, str]) -> None:
    assert tuple(row)[1:] == COLUMNS
    assert quoted(row["code"])
    for path in quoted(row["code"]):
        assert (ROOT / path).is_file(), path
    assert quoted(row["test"])
    for name in quoted(row["test"]):
        path, _, test = name.partition("::")
        assert (ROOT / path).is_file(), path
        assert not test or test in names_in(ROOT / path), name
    assert quoted(row["command"])
    for command in quoted(row["command"]):
        check_command(command)
    assert row["here"], "say what came out here, or that it is out of reach"


def check_command(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "tvmatch":
        assert words[0] in COMMANDS, command
        for option in (word for word in words if word.startswith("--")):
            assert option in help_of(words[0]), command
        if words[0] == "ablate":
            assert set(words[1:]) <= set(STUDIES), command
    elif program == "python" and words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[2:]), command
    else:
        assert program in ("python", "bash"), command
        text = (ROOT / words[0]).read_text()
        assert all(f'"{word}"' in text for word in words if word.startswith("--")), command


def test_every_other_path_on_the_page_is_there() -> None:
    for path in re.findall(r"`((?:src|tests|benchmarks|docs|runs)/[\w./]+)(?:::\w+)?`", PAGE):
        assert (ROOT / path).exists(), path


def test_no_figure_is_left_open() -> None:
    assert not re.findall(r"@\w+@", PAGE)
    assert len(ROWS) > 30


def test_the_check_can_fail() -> None:
    good = next(row for row in ROWS if "tvmatch ablate" in row["command"])
    for column, wrong in (
        ("code", "`src/tvmatch/nothing.py`"),
        ("test", "`tests/test_flow_map.py::test_nothing`"),
        ("command", "`tvmatch ablate nothing`"),
        ("command", "`tvmatch train --nothing 1`"),
        ("command", "`python benchmarks/bound.py --nothing`"),
        ("here", ""),
    ):
        with pytest.raises(AssertionError):
            test_a_row_names_what_is_there({**good, column: wrong})
