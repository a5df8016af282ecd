"""Calling the command line in this process."""

from dataclasses import dataclass

import pytest

from tvmatch.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def tvmatch(capsys: pytest.CaptureFixture, *arguments: object) -> Answer:
    """Run `tvmatch ARGUMENTS`."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:  # tyro ends the program itself
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return Answer(code, captured.out, captured.err)


def assert_one_line(answer: Answer, message: str) -> None:
    """Bad input: exit code 2, nothing on stdout, one line on stderr that says `message`."""
    assert answer.code == 2
    assert answer.out == ""
    assert message in answer.err
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.err
