"""Telling people something on stdout or stderr, which may be gone: their reader closed, or their disk full.

What is told is worth less than the work it tells of, so nothing here raises. A stream that fails once is led to the
null device: Python flushes it again when it ends, and would turn that failure into an exit code of 120.
"""

import contextlib
import os
import sys
from typing import Any, TextIO


class Lasting:
    """A text stream that drops what it cannot write. None, as of a program without a console, drops all."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Number of characters, as of any text stream."""
        if self.stream is not None:
            try:
                self.stream.write(text)
            except OSError:
                give_up(self.stream)
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            try:
                self.stream.flush()
            except OSError:
                give_up(self.stream)

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:  # encoding, fileno
        return getattr(self.stream, name)


def give_up(stream: TextIO) -> None:
    """Lead a stream that cannot be written to the null device. One without a descriptor (a notebook's) stays."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def tell(message: str) -> None:
    """A line on stderr."""
    print(message, file=Lasting(sys.stderr), flush=True)


def print_result(command: str, message: str) -> None:
    """A line on stdout, at the end of work that is done whatever becomes of the line: where it cannot be written, one
    on stderr says so."""
    if sys.stdout is None:
        return
    try:
        print(message, flush=True)
    except OSError as error:
        give_up(sys.stdout)
        tell(f"tvmatch {command}: cannot write to stdout: {error.strerror or error}. All else is done.")
