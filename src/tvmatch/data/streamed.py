"""Pictures that are decoded when they are asked for: data sets larger than memory, and random crops."""

import logging
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Self

import numpy as np

from tvmatch.data.decoders import DecoderDied, Decoders, Job, Workers
from tvmatch.data.decoding import Crop
from tvmatch.data.naming import named
from tvmatch.data.records import Records, fingerprint_of
from tvmatch.data.source import DataError, check_image_size, checked_indices

logger = logging.getLogger("tvmatch")


class StreamedSource:
    """A `Source` over encoded pictures.

    records     the encoded pictures
    image_size  pixels a side that each is brought to
    crop        the centred square, or a random one, drawn anew whenever a picture is seen
    strict      a picture that cannot be used is an error; otherwise the next of its class stands in for it, always the
                same one, and `skipped` counts and names it
    workers     what decodes: processes, threads, or what suits the machine
    """

    latent_space = None

    def __init__(
        self,
        records: Records,
        image_size: int,
        crop: Crop = "centre",
        strict: bool = False,
        workers: Workers = "auto",
        count: int | None = None,
    ) -> None:
        check_image_size(image_size)
        if not len(records):
            raise DataError(f"{records.origin}: there are no pictures{_because(records)}.")
        if strict and records.skipped:
            raise DataError(f"{records.origin}: {named(records.skipped)}. Mend or remove them, or give --no-strict.")
        self.records, self.strict, self.crop = records, strict, crop
        self.shape = (3, image_size, image_size)
        self.labels = records.labels
        self.class_names = records.class_names
        self._bad: dict[int, str] = {}  # of batches: others stand in for these
        self._unread: dict[int, str] = {}  # of `read`: nothing does
        self._decoders = Decoders(Job(records, image_size, crop), workers, count)
        self._lock = threading.Lock()  # of `_bad` and `_unread`

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """Of names, labels, sizes and some of the bytes (`fingerprint_of`)."""
        return fingerprint_of(self.records, self.shape[1], self.crop)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of what was left out until now."""
        with self._lock:
            both = self._unread | self._bad
        bad = tuple((self.records.name(index), reason) for index, reason in both.items())
        return tuple(sorted(self.records.skipped + bad))

    @property
    def unusable(self) -> tuple[int, ...]:
        """The numbers of the pictures for which others have stood in until now."""
        with self._lock:
            return tuple(sorted(self._bad))

    @property
    def skipped_when_opened(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of what was left out when the data set was listed."""
        return self.records.skipped

    def __len__(self) -> int:
        return len(self.records)

    def batch(
        self, indices: np.ndarray, flips: np.ndarray | None = None, seeds: np.ndarray | None = None
    ) -> np.ndarray:
        """The pictures at `indices` [B], uint8 [B, size, size, 3]; `seeds` [B] draw random crops."""
        return self.begin(indices, flips, seeds)()

    def begin(
        self, indices: np.ndarray, flips: np.ndarray | None = None, seeds: np.ndarray | None = None
    ) -> Callable[[], np.ndarray]:
        """Begin to make a batch; the answer waits for it. Who begins the next one first keeps the decoders busy."""
        indices = checked_indices(indices, len(self))
        if seeds is None:
            if self.crop == "random":
                raise ValueError("random crops need `seeds`, one a picture.")
            seeds = np.zeros(len(indices), np.int64)
        if flips is None:
            flips = np.zeros(len(indices), bool)
        chosen = self._choose(indices)
        waiting = self._start(chosen, seeds, flips)
        return lambda: self._finish(indices, seeds, flips, chosen, waiting)

    def _finish(
        self,
        indices: np.ndarray,
        seeds: np.ndarray,
        flips: np.ndarray,
        chosen: np.ndarray,
        waiting: Callable[[], list[np.ndarray | str]],
    ) -> np.ndarray:
        """The pictures that were begun, and others where one cannot be used."""
        pictures = np.empty((len(indices), *self.shape[1:], 3), np.uint8)
        wanted = np.arange(len(indices))
        while True:
            again = []
            for place, index, result in zip(wanted, chosen, self._wait(waiting), strict=True):
                if isinstance(result, str):
                    self._note(self._bad, int(index), result)
                    again.append(place)
                else:
                    pictures[place] = result
            if not again:
                return pictures
            wanted = np.array(again)
            chosen = self._choose(indices[wanted])
            waiting = self._start(chosen, seeds[wanted], flips[wanted])

    def read(self, indices: np.ndarray) -> list[np.ndarray | str]:
        """The pictures at `indices` [B], each uint8 [size, size, 3] or the reason why it cannot be used; nothing
        stands in for it. With `strict` it is an error."""
        indices = checked_indices(indices, len(self))
        none = np.zeros(len(indices), np.int64)
        results = self._wait(self._start(indices, none, none.astype(bool)))
        for index, result in zip(indices, results, strict=True):
            if isinstance(result, str):
                self._note(self._unread, int(index), result)
        return results

    def name(self, index: int) -> str:
        """What messages call this picture."""
        return self.records.name(index)

    def _choose(self, indices: np.ndarray) -> np.ndarray:
        """The pictures themselves, or for each that is known to be unusable the next of its class that is not."""
        with self._lock:
            return np.array([self._usable(index) for index in indices.tolist()], np.int64)

    def _usable(self, index: int) -> int:
        if index not in self._bad:
            return index
        size, label = len(self), self.labels[index]
        for step in range(1, size):
            other = (index + step) % size
            if self.labels[other] == label and other not in self._bad:
                return other
        of = f" of class {self.class_names[label]!r}" if self.num_classes else ""
        raise DataError(f"{self.records.origin}: no picture{of} can be used: {named(self._all_bad())}.")

    def _start(self, indices: np.ndarray, seeds: np.ndarray, flips: np.ndarray) -> Callable[[], list[np.ndarray | str]]:
        try:
            return self._decoders.start(indices, np.asarray(seeds), np.asarray(flips))
        except DecoderDied as died:
            raise self._died(died) from died

    def _wait(self, waiting: Callable[[], list[np.ndarray | str]]) -> list[np.ndarray | str]:
        try:
            return waiting()
        except DecoderDied as died:
            raise self._died(died) from died

    def _died(self, died: DecoderDied) -> DataError:
        names = ", ".join(repr(self.records.name(int(index))) for index in died.chunk)
        return DataError(
            f"{self.records.origin}: a decoding process died (out of memory, or a picture broke the decoder) over "
            f"one of {names}. Remove the one that Pillow cannot open, or free some memory."
        )

    def _note(self, where: dict[int, str], index: int, reason: str) -> None:
        if self.strict:
            raise DataError(
                f"{self.records.origin}: {self.records.name(index)!r} cannot be used ({reason}). Mend or remove it, or "
                "give --no-strict to skip it."
            )
        with self._lock:
            where[index] = reason

    def _all_bad(self) -> tuple[tuple[str, str], ...]:
        return tuple((self.records.name(index), reason) for index, reason in sorted(self._bad.items()))

    def close(self) -> None:
        """End the workers, and say for which pictures others stood in. May be called twice."""
        self._decoders.close()
        if self._bad:
            logger.warning(
                "%s: %s could not be used; others of their classes stood in (--strict makes this an error).",
                self.records.origin,
                named(self._all_bad()),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _because(records: Records) -> str:
    return f"; left out were {named(records.skipped)}" if records.skipped else ""
