"""What `--help` says: every option has a text of its own, and nothing of how Python writes an absent value."""

import dataclasses
import importlib
import re

import pytest

from tests.cli.support import tvmatch
from tvmatch.cli.main import COMMANDS
from tvmatch.cli.options import parse, readable


@dataclasses.dataclass(frozen=True)
class Example:
    """Options of every kind."""

    number: int | None = None  # how many (default: as many as there are)
    names: tuple[str, ...] = ()  # of what (default: all)
    given: int = 3  # plainly


def explained(help_text: str) -> list[tuple[str, str]]:
    """Options and their texts without defaults. A text stands behind its option, or below one that is long."""
    found: list[tuple[str, str]] = []
    for line in (line.strip("│ ") for line in help_text.splitlines()):
        option, _, text = re.sub(r"\s{2,}", "\t", line).partition("\t")
        text = re.sub(r"\s*\((default|required)[^()]*\)$", "", text)
        if line.startswith("-") and not line.startswith("---"):
            found.append((option, text))
        elif found and not found[-1][1]:
            found[-1] = found[-1][0], re.sub(r"\s*\((default|required)[^()]*\)$", "", line)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(
    command: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "4000")  # a line an option
    answer = tvmatch(capsys, command, "--help")
    assert answer.code == 0
    texts = {}
    for option, text in explained(answer.out):
        assert text, f"tvmatch {command} {option} has no text"
        assert texts.setdefault(text, option) == option, f"{option} says what {texts[text]} says"
    assert "-h, --help" in texts.values()
    assert "None" not in re.sub(r"\(None: .*?\)", "", answer.out)
    assert "(default: )" not in answer.out


def test_an_absent_value_is_not_shown_and_a_default_is(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(Example, "example", "An example.", ["--help"])
    text = capsys.readouterr().out
    assert re.search(r"--number INT\s+how many \(default: as many as there are\)", text)
    assert re.search(r"plainly \(default: 3\)", text)
    with pytest.raises(SystemExit):
        parse(Example, "example", "An example.", ["--help"], default=Example(number=7))
    assert "(default: as many as there are) (default: 7)" in " ".join(capsys.readouterr().out.split())
    assert parse(Example, "example", "", ["--names", "a", "b"]) == Example(names=("a", "b"))
    assert parse(Example, "example", "", ["--number", "4"]) == Example(number=4)


def test_options_stay_what_they_are() -> None:
    for module, _ in COMMANDS.values():
        for name, value in vars(importlib.import_module(module)).items():
            if name.endswith("Options") and dataclasses.is_dataclass(value):
                fields = dataclasses.fields(value)
                assert dataclasses.fields(readable(value)) == fields
