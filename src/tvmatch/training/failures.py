"""What ends a run in the middle: its disk, its memory, its other processes. Each is told with what is left to do."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from tvmatch.data.source import DataError
from tvmatch.training.checkpoint import last_checkpoint_text
from tvmatch.training.config import TrainConfig
from tvmatch.training.ranks import RanksError
from tvmatch.training.state import TrainingState


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and what was saved."""


class MemoryFullError(RuntimeError):
    """A step, or what comes before the first, found no memory. Not a `TrainingError`, of which a study takes note as of
    a training that diverged."""


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
        raise MemoryFullError(
            f"step {state.step}: {memory_text(error)}. {last_checkpoint_text(run)} Run the same command with a "
            "larger --accumulate or with --recompute full to continue, or choose another --run with a smaller "
            "--batch-size."
        ) from error


@contextlib.contextmanager
def told_preparation(run: Path) -> Iterator[None]:
    """Around what comes before the first step, where the network is first called with a whole batch (the check of its
    tangents): memory that is full becomes a `MemoryFullError`."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise MemoryFullError(
            f"before the first step: {memory_text(error)}. Nothing was written to {run}. Run the command with "
            "a larger --accumulate, with --recompute full, a smaller --batch-size or a smaller --network."
        ) from error


def unreadable(error: DataError | OSError, config: TrainConfig, step: int) -> DataError | TrainingError:
    """What to raise where the batch of `step` cannot be had: told apart from a disk that cannot be written, and with
    what a remedy means for the run."""
    kept = last_checkpoint_text(config.run)
    if isinstance(error, OSError):
        return TrainingError(f"step {step}: the data set cannot be read: {error}. {kept}")
    go_on = "; the same command with --no-strict goes on with this run" if config.strict else ""
    return DataError(
        f"step {step}: {error} {kept} Data that is mended, or from which pictures are removed, is other data and needs "
        f"another --run{go_on}."
    )


def memory_text(error: RuntimeError) -> str:
    """What was asked for where `out_of_memory`, in words."""
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return "out of memory" + (f" (asked for {asked[1]} more)" if asked else "")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch found no memory: on a GPU its own class says so, on the CPU the name of its allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
