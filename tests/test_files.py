"""Files appear whole or not at all, also where two processes write the same one at once."""

import multiprocessing
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tvmatch.files import replacing, write_text


def write_first(path: Path, begun: Event, other: Event) -> None:
    with replacing(path) as file:
        file.write(10_000 * b"a")
        file.flush()
        begun.set()
        assert other.wait(60)
        time.sleep(0.3)  # the other has had time to open what this one writes, were it let
        file.write(10_000 * b"a")


def write_second(path: Path, begun: Event) -> None:
    begun.set()
    with replacing(path) as file:
        file.write(5_000 * b"b")


def test_of_two_writers_at_once_the_second_waits_and_both_are_whole(tmp_path: Path) -> None:
    path, spawn = tmp_path / "file", multiprocessing.get_context("spawn")
    first, second = spawn.Event(), spawn.Event()
    writers = [
        spawn.Process(target=write_first, args=(path, first, second)),
        spawn.Process(target=write_second, args=(path, second)),
    ]
    writers[0].start()
    assert first.wait(60)
    writers[1].start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen |= {path.read_bytes()} if path.exists() else set()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {20_000 * b"a", 5_000 * b"b"}
    assert path.read_bytes() == 5_000 * b"b"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    path, failures = tmp_path / "file", []

    def write(k: int) -> None:
        try:
            for _ in range(20):
                write_text(path, 5000 * str(k))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            text = path.read_text()
            assert text == 5000 * text[0]
    assert not failures
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_keeps_what_was_there_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_a_kill_left_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_text("what a writer had got to, and more than comes now")
    write_text(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
