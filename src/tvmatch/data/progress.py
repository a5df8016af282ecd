"""A progress bar for work that may be over before a bar is worth showing."""

import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0  # seconds


def show_progress(items: range, description: str) -> Iterator[int]:
    """Yield the items; once they take longer than PATIENCE, and stderr is a terminal, show a bar there."""
    started = time.monotonic()
    progress = None
    try:
        for done, item in enumerate(items):
            if progress is None and time.monotonic() - started > PATIENCE and sys.stderr.isatty():
                progress = Progress(console=Console(stderr=True), transient=True)
                progress.start()
                task = progress.add_task(description, total=len(items))
            if progress is not None:
                progress.update(task, completed=done)
            yield item
    finally:
        if progress is not None:
            progress.stop()
