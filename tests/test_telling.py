"""Streams that cannot be written: nothing raises, and they lead to the null device from then on."""

import io

import pytest

from tvmatch.telling import Lasting, print_result, tell


def test_a_stream_that_fails_once_leads_to_the_null_device() -> None:
    full = open("/dev/full", "w")  # noqa: SIM115 (closing it is part of the test)
    lasting = Lasting(full)
    assert lasting.write("text") == 4
    lasting.flush()
    full.write("more")
    full.close()


def test_what_can_be_written_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    tell("one")
    print_result("train", "two")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("two\n", "one\n")
    assert Lasting(io.StringIO()).encoding == io.StringIO().encoding


def test_a_program_without_a_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.stdout", None)
    tell("one")
    print_result("train", "two")
    assert not Lasting(None).isatty()
