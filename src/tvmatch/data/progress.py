"""Progress bars: for work that may be over before a bar is worth showing, and for work that takes hours."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tvmatch.telling import Lasting, tell

PATIENCE = 2.0  # seconds
BETWEEN_LINES = 30.0  # seconds, where there is no terminal


def show_progress(items: range, description: str) -> Iterator[int]:
    """Yield the items; once they take longer than PATIENCE, and stderr is a terminal, show a bar there."""
    started = time.monotonic()
    progress = None
    try:
        for done, item in enumerate(items):
            if progress is None and time.monotonic() - started > PATIENCE and sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import Progress

                progress = Progress(console=Console(file=Lasting(sys.stderr)), transient=True)
                progress.start()
                task = progress.add_task(description, total=len(items))
            if progress is not None:
                progress.update(task, completed=done)
            yield item
    finally:
        if progress is not None:
            progress.stop()


@contextlib.contextmanager
def counting(description: str, total: int, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with rate and time left, for the length of a block, if stderr is a terminal; a line now and then
    if it is not. Yields a function of (pictures dealt with, pictures among them that took work)."""
    from rich import progress as bars
    from rich.console import Console

    started, worked, dealt, told = time.monotonic(), 0, 0, time.monotonic()
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    terminal = sys.stderr.isatty()
    with bars.Progress(
        *columns, console=Console(file=Lasting(sys.stderr)), disable=not (show and terminal)
    ) as progress:
        task = progress.add_task(description, total=total, rate="")

        def done(pictures: int, encoded: int) -> None:
            nonlocal worked, dealt, told
            worked, dealt, now = worked + encoded, dealt + pictures, time.monotonic()
            rate = worked / max(now - started, 1e-9)
            progress.update(task, advance=pictures, rate=f"{rate:.0f}/s")
            if show and not terminal and now - told > BETWEEN_LINES:
                left = (total - dealt) / rate / 60 if rate else float("inf")
                tell(f"{description} {dealt}/{total}, {rate:.0f}/s, {left:.0f} min left")
                told = now

        yield done
