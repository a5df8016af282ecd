"""Batches made ready in a background thread, on the device, while the network is busy with the one before."""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tvmatch.data.source import DataError, Pipelined, Source
from tvmatch.data.stream import ShuffledStream


class Prefetcher:
    """Iterates without end over (samples [B, ...], labels int64 [B]) of the steps `start`, `start` + 1, ...

    Samples are pictures uint8 [B, H, W, C] or latents float32 [B, C, H, W], whichever the source holds.

    source  the data set
    stream  which samples each step sees; B is the stream's share
    start   the first step (the number of steps already done, when a run resumes)
    device  where the tensors go; for CUDA the thread copies them through pinned memory on a stream of its own, so that
            a batch lies on the GPU before it is asked for
    flip    mirror every second picture left to right, drawn by the stream, so that a resume repeats it
    ahead   batches kept ready

    `waited` counts the seconds that the consumer had to wait for batches.

    An exception while a batch is made is raised to the consumer at that batch. Use it as a context manager, or call
    `close`: the thread then ends at once, also when the consumer failed.
    """

    def __init__(
        self,
        source: Source,
        stream: ShuffledStream,
        start: int = 0,
        device: torch.device | str = "cpu",
        flip: bool = False,
        ahead: int = 3,
    ) -> None:
        if stream.size != len(source):
            raise DataError(f"the stream runs over {stream.size} samples, but the data set holds {len(source)}.")
        if start < 0:
            raise ValueError(f"training steps count from 0, got {start}.")
        if ahead < 1:
            raise ValueError(f"at least 1 batch is kept ready, got ahead={ahead}.")
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.waited = 0.0
        self._ready: queue.Queue[_Ready | BaseException] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        # The thread must not hold this object, or one that is dropped without close() would live for ever
        self._thread = threading.Thread(
            target=_work,
            args=(source, stream, start, flip, self.device, self._ready, self._closed),
            name="tvmatch-prefetch",
            daemon=True,
        )
        weakref.finalize(self, self._closed.set)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        began = time.perf_counter()
        while True:
            if self._closed.is_set():
                raise RuntimeError("the prefetcher is closed; make a new one with start= the next step.")
            try:
                item = self._ready.get(timeout=1.0)
                break
            except queue.Empty:  # look again whether it was closed from elsewhere
                continue
        if isinstance(item, BaseException):
            self.close()
            raise item
        self.waited += time.perf_counter() - began
        if item.copied is not None:  # the GPU waits for the copy; this thread does not
            current = torch.cuda.current_stream(self.device)
            current.wait_event(item.copied)
            for tensor in item.batch:
                tensor.record_stream(current)
        return item.batch

    def close(self) -> None:
        """End the thread and drop what was ready. May be called twice."""
        self._closed.set()
        while self._thread.is_alive():
            try:  # a thread that waits for room finds it and sees that it is over
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _work(
    source: Source,
    stream: ShuffledStream,
    start: int,
    flip: bool,
    device: torch.device,
    ready: queue.Queue,
    closed: threading.Event,
) -> None:
    """The thread: make one batch after the other until `closed`, or hand over the exception that stopped it."""

    def hand_over(item: object) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    try:
        on_gpu = device.type == "cuda"
        if on_gpu:  # a thread begins on GPU 0, where pinning would open a context for every rank
            torch.cuda.set_device(device)
            stream_of_copies = torch.cuda.Stream(device)
        following = begin_batch(source, stream, start, flip, pin=on_gpu)
        for step in count(start):
            waiting, following = following, begin_batch(source, stream, step + 1, flip, pin=on_gpu)
            batch = waiting()
            copied = None
            if on_gpu:
                with torch.cuda.stream(stream_of_copies):
                    batch = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
                    copied = torch.cuda.Event()
                    copied.record(stream_of_copies)
            elif device.type != "cpu":
                batch = tuple(tensor.to(device) for tensor in batch)
            if not hand_over(_Ready(batch, copied)):
                return
    except BaseException as error:
        hand_over(error)


@dataclass(frozen=True)
class _Ready:
    """A batch on its device, and the event after which it is there (None: it is)."""

    batch: tuple[Tensor, Tensor]
    copied: torch.cuda.Event | None


def load_batch(
    source: Source, stream: ShuffledStream, step: int, flip: bool = False, pin: bool = False
) -> tuple[Tensor, Tensor]:
    """The samples and the labels int64 [B] of training step `step`, on the CPU, pinned if asked for."""
    return begin_batch(source, stream, step, flip, pin)()


def begin_batch(
    source: Source, stream: ShuffledStream, step: int, flip: bool = False, pin: bool = False
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Begin what `load_batch` does, where the source can; the answer waits for it."""
    indices = stream.indices(step)
    arguments = indices, stream.flips(step) if flip else None, stream.seeds(step)
    waiting = source.begin(*arguments) if isinstance(source, Pipelined) else partial(source.batch, *arguments)
    return lambda: _checked(waiting(), source, indices, step, pin)


def _checked(samples: np.ndarray, source: Source, indices: np.ndarray, step: int, pin: bool) -> tuple[Tensor, Tensor]:
    """Samples that keep their source's promise, and their labels, as tensors."""
    channels, height, width = source.shape
    shapes = {
        "uint8": (len(indices), height, width, channels),
        "float32": (len(indices), channels, height, width),
    }
    if samples.shape != shapes.get(str(samples.dtype)):
        raise DataError(
            f"the data set must give uint8 {list(shapes['uint8'])} or float32 {list(shapes['float32'])}, got "
            f"{samples.dtype} {list(samples.shape)} at step {step}."
        )
    pair = torch.from_numpy(np.ascontiguousarray(samples)), torch.from_numpy(source.labels[indices])
    return tuple(tensor.pin_memory() for tensor in pair) if pin else pair
