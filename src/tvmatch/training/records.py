"""What a run writes besides checkpoints: metrics.jsonl, the same figures on TensorBoard, pictures of samples."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from tvmatch.pictures import save_png
from tvmatch.training.run_folder import MetricsFile


class Records:
    """Of a run that goes on after `step`: what was written later is dropped, because it is written again. Use as a
    context manager, on rank 0."""

    def __init__(self, run: Path, step: int) -> None:
        self.run = run
        self.metrics = MetricsFile(run / "metrics.jsonl", step)
        # what was logged at this step lies before the checkpoint; what came after it is written again
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.board.close()

    def write(
        self, step: int, scalars: Mapping[str, float], tables: Mapping[str, Any], by_time: Mapping[str, float]
    ) -> None:
        """One line: figures and tables; on the board the figures, and the tables' as one figure a bin."""
        self.metrics.write({"step": step, **scalars, **tables})
        for name, value in {**scalars, **by_time}.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image.Image | np.ndarray) -> None:
        """Samples, in RUN/samples and on the board."""
        save_png(picture, self.run / "samples" / f"step_{step:08d}.png")
        self.board.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def lost(self) -> str | None:
        """In words, how far a run that begins anew was trained before: its checkpoints are gone, or it was killed
        before its first. None where it had written nothing."""
        if not self.metrics.dropped:
            return None
        return (
            f"{self.run} was trained until step {self.metrics.dropped} at least, and holds no checkpoint: starting "
            "anew from step 0"
        )
