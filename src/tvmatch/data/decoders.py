"""Workers that decode pictures: processes on a machine with many cores, threads on a small one.

Pillow decodes and resizes without Python's lock, but holds it for some 0.5 ms a picture: a few threads run well,
sixteen wait for each other. Processes come from a fork server, which knows nothing of the GPU or of the trainer's
threads.
"""

import multiprocessing
import os
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tvmatch.data.decoding import Crop, UnusablePicture, decode
from tvmatch.data.records import Records

Workers = Literal["auto", "threads", "processes"]
CHUNK = 8  # pictures a task
MANY_CORES = 6  # from here on processes are faster
MOST = 32

_here: "Job | None" = None  # of a worker process, set once when it starts


class DecoderDied(RuntimeError):
    """A worker process ended while it decoded; `chunk` holds the numbers of the pictures it was given."""

    def __init__(self, chunk: np.ndarray) -> None:
        super().__init__(f"a process that decoded pictures {chunk.tolist()} ended by itself")
        self.chunk = chunk


@dataclass(frozen=True)
class Job:
    """What to decode, and to what."""

    records: Records
    size: int
    crop: Crop

    def one(self, index: int, seed: int, flip: bool) -> np.ndarray | str:
        """uint8 [size, size, 3], mirrored if asked for, or the reason why there is no picture."""
        try:
            picture = decode(self.records.read(index), self.size, self.crop, seed)[0]
            return np.ascontiguousarray(picture[:, ::-1]) if flip else picture
        except UnusablePicture as error:
            return str(error)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"

    def many(self, indices: np.ndarray, seeds: np.ndarray, flips: np.ndarray) -> list[np.ndarray | str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, once a file: what matters is the reason
            rows = zip(indices.tolist(), seeds.tolist(), flips.tolist(), strict=True)
            return [self.one(index, seed, flip) for index, seed, flip in rows]


class Decoders:
    """A pool that decodes pictures by number. `close` ends it; it starts again when used again."""

    def __init__(self, job: Job, workers: Workers = "auto", count: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.job = job
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this run on this machine, each with decoders
        self.count = count or max(1, min(cores // processes, MOST))
        self.processes = workers == "processes" or (workers == "auto" and cores >= MANY_CORES)
        self._pool: Executor | None = None

    def start(self, indices: np.ndarray, seeds: np.ndarray, flips: np.ndarray) -> Callable[[], list[np.ndarray | str]]:
        """Begin to decode the pictures at `indices` [B]; the answer waits for them, or reasons, in this order.

        Both raise `DecoderDied`.
        """
        parts = [slice(first, first + CHUNK) for first in range(0, len(indices), CHUNK)]
        running = [(indices[part], self._submit(indices[part], seeds[part], flips[part])) for part in parts]
        return lambda: [result for chunk, future in running for result in self._result(chunk, future)]

    def _submit(self, indices: np.ndarray, seeds: np.ndarray, flips: np.ndarray) -> Future:
        if self._pool is None:
            self._pool = self._start()
        work = _decode_here if self.processes else self.job.many
        try:
            return self._pool.submit(work, indices, seeds, flips)
        except BrokenProcessPool as error:
            self.close()
            raise DecoderDied(indices) from error

    def _result(self, indices: np.ndarray, future: Future) -> list[np.ndarray | str]:
        try:
            return future.result()
        except BrokenProcessPool as error:
            self.close()
            raise DecoderDied(indices) from error

    def _start(self) -> Executor:
        if not self.processes:
            return ThreadPoolExecutor(self.count, thread_name_prefix="tvmatch-decode")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tvmatch.data.decoders"])
        return ProcessPoolExecutor(self.count, context, initializer=_begin, initargs=(self.job,))

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _begin(job: Job) -> None:
    """A worker process starts."""
    global _here
    _here = job
    torch.set_num_threads(1)  # there is a process for every core


def _decode_here(indices: np.ndarray, seeds: np.ndarray, flips: np.ndarray) -> list[np.ndarray | str]:
    assert _here is not None
    return _here.many(indices, seeds, flips)
