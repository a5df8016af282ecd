"""Batches made ready in a background thread while the network is busy with the one before."""

import queue
import threading
import weakref
from itertools import count
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tvmatch.data.source import DataError, Source
from tvmatch.data.stream import ShuffledStream


class Prefetcher:
    """Iterates without end over (images uint8 [B, H, W, C], labels int64 [B]) of the steps `start`, `start` + 1, ...

    source  the data set
    stream  which samples each step sees; B is the stream's share
    start   the first step (the number of steps already done, when a run resumes)
    device  where the tensors go; for CUDA they travel through pinned memory without waiting
    flip    mirror every second picture left to right, drawn by the stream, so that a resume repeats it
    ahead   batches kept ready

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
        self._ready: queue.Queue[tuple[Tensor, Tensor] | BaseException] = queue.Queue(maxsize=ahead)
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
        images, labels = item
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

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
        pin = device.type == "cuda"
        if pin:  # a thread begins on GPU 0, where pinning would open a context for every rank
            torch.cuda.set_device(device)
        for step in count(start):
            if not hand_over(load_batch(source, stream, step, flip, pin)):
                return
    except BaseException as error:
        hand_over(error)


def load_batch(
    source: Source, stream: ShuffledStream, step: int, flip: bool = False, pin: bool = False
) -> tuple[Tensor, Tensor]:
    """Images uint8 [B, H, W, C] and labels int64 [B] of training step `step`, on the CPU, pinned if asked for."""
    indices = stream.indices(step)
    images = source.batch(indices)
    channels, height, width = source.shape
    if images.dtype != np.uint8 or images.shape != (len(indices), height, width, channels):
        raise DataError(
            f"the data set must give uint8 {[len(indices), height, width, channels]}, got {images.dtype} "
            f"{list(images.shape)} at step {step}."
        )
    if flip:
        images = np.where(stream.flips(step)[:, None, None, None], images[:, :, ::-1], images)
    pair = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(source.labels[indices])
    return tuple(tensor.pin_memory() for tensor in pair) if pin else pair
