"""Saving checkpoints while training goes on: copied at once, written in the background, atomic, the last k kept."""

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from tvmatch.files import sync_folder
from tvmatch.training.checkpoint import (
    FORMAT,
    CheckpointError,
    checkpoint_path,
    clear_unfinished,
    first_failure,
    last_checkpoint_text,
    list_checkpoints,
    prune,
    remove,
    unfinished,
)
from tvmatch.training.ranks import Ranks
from tvmatch.training.storage import SafetensorsWriter


class Saver:
    """Writes the checkpoints of a run. Every rank makes one and calls it alike.

    `start` returns when the tensors have been copied to main memory (of which it needs as much as they take); a
    background thread writes them. They get the checkpoint's name when all ranks' files are on the disk, so that a full
    disk or a kill leaves the checkpoints that were there. A failure is told by `failed` and raised by `wait`.
    """

    def __init__(self, run: Path, keep: int, ranks: Ranks) -> None:
        self.run, self.keep, self.ranks = run, keep, ranks
        self.stager = BlockingAsyncStager()
        self.staged: frozenset[str] = frozenset()
        self.writing: Future | None = None
        self.path, self.size = run, 0  # of the save in hand

    def start(self, step: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
        """Begin to write the checkpoint of `step`, once the one before is complete; returns its path.

        Raises `CheckpointError` if the one before failed, or this one can be seen to fail.
        """
        self.wait()
        path = checkpoint_path(self.run, step)
        self.path, self.size = path, sum(value.numel() * value.itemsize for value in tensors.values())
        try:
            if self.ranks.on_main(lambda: self._make_room(path)):
                return path
        except OSError as error:
            raise self._refused(error.strerror or str(error)) from error
        writer = SafetensorsWriter(unfinished(path), {"format": FORMAT, **header, "step": step}, self._complete)
        self.writing = dcp.async_save(
            dict(tensors),
            storage_writer=writer,
            process_group=self.ranks.saving,
            async_stager=self._stager_for(frozenset(tensors)),
            no_dist=self.ranks.saving is None,
        )
        return path

    @property
    def failed(self) -> bool:
        """Whether the save in hand is known to have failed; `wait` raises why."""
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def wait(self) -> None:
        """Return when no save is in hand; raises `CheckpointError` if it failed."""
        if self.writing is None:
            return
        try:
            self.writing.result()
        except CheckpointException as error:
            self.writing = None
            if self.ranks.main:
                remove(unfinished(self.path))
            raise self._refused(first_failure(error)) from error
        self.writing = None

    def close(self) -> None:
        """Let a save in hand end, well or badly: its thread would write on in a run that others may take up."""
        if self.writing is not None:
            self.writing.exception()

    def _stager_for(self, names: frozenset[str]) -> BlockingAsyncStager:
        """What copies tensors to main memory: for a GPU into pinned memory that is kept from save to save, as long as
        the tensors are the same (a run saved before its first step has no state of the optimiser)."""
        if names != self.staged:
            self.stager = BlockingAsyncStager(cache_staged_state_dict=self.ranks.device.type == "cuda")
            self.staged = names
        return self.stager

    def _make_room(self, path: Path) -> bool:
        """Whether the checkpoint is there already, as when a run is continued and stopped at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished(self.run)
        return path in list_checkpoints(self.run)

    def _complete(self) -> None:
        """On rank 0, in the background: all files are on the disk."""
        unfinished(self.path).rename(self.path)
        sync_folder(self.path.parent)
        prune(self.run, self.keep)

    def _refused(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"cannot save {self.path} ({self.size / 2**20:.1f} MiB): {reason}. {last_checkpoint_text(self.run)} "
            "Free some space or make the folder writable, then run the same command again to continue."
        )
