"""What a person sees of a run: a bar with loss, speed and time left on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tvmatch.telling import Lasting

QUIET_SECONDS = 10.0  # between lines where there is no terminal


class TrainingProgress:
    """Use as a context manager; call `update` at every step, with new figures when there are some. All goes to stderr,
    and nowhere once that cannot be written."""

    def __init__(self, name: str, start: int, steps: int, enabled: bool = True) -> None:
        # a closed pipe, for which rich would end the program, or a full disk must not end a run
        self.console = Console(file=Lasting(sys.stderr))
        self.name, self.steps, self.start = name, steps, start
        self.enabled = enabled
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),  # a folder's name may hold brackets
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.task = self.bar.add_task(name, total=steps, completed=start, figures="")
        self.figures = ""
        self.began = self.last_line = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, figures: dict[str, float] | None = None, steps: int | None = None) -> None:
        """Step `step` is done; `figures` are shown behind the bar. `steps` in all, if that is another number now."""
        self.steps = steps or self.steps
        if figures is not None:
            self.figures = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.bar.update(self.task, completed=step, total=self.steps, figures=self.figures)
        now = time.monotonic()
        if self.enabled and self.bar.disable and (now - self.last_line >= QUIET_SECONDS or step == self.steps):
            self.last_line = now
            left = (now - self.began) / max(step - self.start, 1) * (self.steps - step)
            self.say(f"{self.name} {step}/{self.steps}  {self.figures}  {left:.0f} s left")

    def say(self, message: str) -> None:
        """A line of its own."""
        if self.enabled:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)
