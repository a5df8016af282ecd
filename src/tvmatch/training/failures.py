"""What ends a run in the middle: its disk, its memory, its other processes. Each is told with what is left to do."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from tvmatch.training.checkpoint import last_checkpoint_text
from tvmatch.training.ranks import RanksError
from tvmatch.training.state import TrainingState


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and what was saved."""


class MemoryFullError(RuntimeError):
    """A step found no memory. Not a `TrainingError`, of which a study takes note as of a training that diverged."""


@contextlib.contextmanager
def told_failures(run: Path, state: TrainingState) -> Iterator[None]:
    """Around the steps of a run: a folder that cannot be written becomes a `TrainingError`, memory that is full a
    `MemoryFullError`, and a `RanksError` says what the last checkpoint is. All others pass."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"step {state.step}: cannot write into {run}: {error.strerror or error}. {last_checkpoint_text(run)} "
            "Free some space or make the folder writable, then run the same command again to continue."
        ) from error
    except RanksError as error:
        raise RanksError(f"{error} {last_checkpoint_text(run)}") from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        more = f" (asked for {asked[1]} more)" if asked else ""
        raise MemoryFullError(
            f"step {state.step}: out of memory{more}. {last_checkpoint_text(run)} Run the same command with a larger "
            "--accumulate or with --recompute full to continue, or choose another --run with a smaller --batch-size."
        ) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch found no memory: on a GPU its own class says so, on the CPU the name of its allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
