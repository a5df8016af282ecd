"""SIGINT and SIGTERM end a run at a step of its choice, not in the middle of one."""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

PATIENCE = 5.0  # seconds in which a repeated signal, passed on by a launcher, counts as the same one


@contextlib.contextmanager
def collected_signals(patience: float) -> Iterator[list[signal.Signals]]:
    """Collect SIGINT and SIGTERM instead of dying at once; a second signal of the same kind acts as usual, if it comes
    more than `patience` seconds after the first (a launcher may pass on what its processes have received already)."""
    caught: list[signal.Signals] = []
    earlier: dict[int, Any] = {}
    since: dict[int, float] = {}

    def note(number: int, frame: object) -> None:
        first = since.setdefault(number, time.monotonic())
        if not caught:
            caught.append(signal.Signals(number))
        if patience == 0:
            signal.signal(number, earlier[number] or signal.SIG_DFL)
        elif time.monotonic() - first > patience:
            signal.signal(number, earlier[number] or signal.SIG_DFL)
            signal.raise_signal(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            earlier[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals belong to the program that called us
        earlier.clear()
    try:
        yield caught
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not installed by Python
