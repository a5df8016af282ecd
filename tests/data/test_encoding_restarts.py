"""Encodings that were killed, damaged or moved go on to the same bytes; other options are refused."""

import builtins
import os
import signal
from pathlib import Path

import pytest

from tests.data.test_encoding import Spread, encode, files, source
from tvmatch.data import DataError

WRITES = ("open", "fsync", "replace", "mkdir")


def in_child(work) -> int:
    """Run `work` in a forked process and return its exit code or minus its signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_after(operations: int, reader, out: Path):
    """Work that encodes, and dies by SIGKILL before its operation on files of this number."""

    def work() -> None:
        left = operations

        def counted(function):
            def call(*arguments, **options):
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return function(*arguments, **options)

            return call

        builtins.open = counted(open)
        os.fsync, os.replace = counted(os.fsync), counted(os.replace)
        encode(reader, out)

    return work


def test_killed_before_any_operation_a_restart_gives_the_same_bytes(tmp_path):
    reader = source()
    encode(reader, tmp_path / "whole")
    expected = files(tmp_path / "whole")
    for operations in range(1000):
        out = tmp_path / f"killed {operations}"
        code = in_child(killed_after(operations, reader, out))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        in_child(killed_after(operations % 5, reader, out))  # and a second time, early on
        encode(reader, out)
        assert files(out) == expected, operations
    assert operations >= 27  # nine files, each opened, brought to the disk and renamed
    assert files(out) == expected


def test_a_shard_that_was_cut_short_is_made_again(tmp_path):
    encode(source(), tmp_path / "out")
    expected = files(tmp_path / "out")
    shard = tmp_path / "out" / "shards" / "latents-00000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    encode(source(), tmp_path / "out")
    assert files(tmp_path / "out") == expected


def test_other_options_are_refused_and_named(tmp_path):
    encode(source(), tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match="holds an encoding with flips=True, and this command says False"):
        encode(source(), tmp_path / "out", flips=False)
    with pytest.raises(DataError, match="holds an encoding with source="):
        encode(source(9), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(DataError, match="holds other files"):
        encode(source(), tmp_path / "full")
    assert files(tmp_path / "out") == before


def test_a_shard_that_was_damaged_at_its_size_is_made_again(tmp_path):
    encode(source(), tmp_path / "out")
    expected = files(tmp_path / "out")
    shard = tmp_path / "out" / "shards" / "latents-00000.tar"
    content = bytearray(shard.read_bytes())
    content[1500] ^= 1
    shard.write_bytes(content)
    encode(source(), tmp_path / "out")
    assert files(tmp_path / "out") == expected


class Moved(Spread):
    spec = "elsewhere"


class Other(Spread):
    spec, hash = "other", "6" * 64


def test_a_codec_that_has_moved_continues_an_encoding(tmp_path):
    encode(source(), tmp_path / "out")
    expected = files(tmp_path / "out")  # by the manifest's bytes a run knows its data again
    for name in ("manifest.json", "shards/latents-00001.json"):
        (tmp_path / "out" / name).unlink()
    encode(source(), tmp_path / "out", Moved())
    assert files(tmp_path / "out") == expected
    with pytest.raises(DataError, match="holds an encoding with codec=spread, and this command says other"):
        encode(source(), tmp_path / "out", Other())
