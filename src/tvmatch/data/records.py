"""Encoded pictures by number, wherever they lie: files of a folder, members of tar shards, rows of a table."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

SAMPLED = 64  # pictures whose bytes go into a fingerprint


class Records(Protocol):
    """A data set of encoded pictures.

    origin       what messages call the data set
    labels       int64 [N], all -1 when there are no classes
    class_names  one name a class
    skipped      (name, reason) of what was left out when the data set was listed
    """

    origin: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call this picture."""
        ...

    def read(self, index: int) -> Path | bytes:
        """The picture's file, or its bytes. `OSError` if it cannot be read."""
        ...

    def sizes(self) -> np.ndarray:
        """int64 [N]: bytes of each encoded picture, or zeros where only reading would tell."""
        ...


@dataclass(frozen=True, eq=False)
class FileRecords:
    """Pictures that are files below `root`."""

    root: Path
    files: list[str]  # relative to root
    labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())

    @property
    def origin(self) -> str:
        return str(self.root)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index]

    def read(self, index: int) -> Path:
        return self.root / self.files[index]

    def sizes(self) -> np.ndarray:
        return np.array([_size(self.root / file) for file in self.files], np.int64)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def fingerprint_of(records: Records, image_size: int, crop: str) -> str:
    """SHA-256 of names, labels, sizes in bytes and class names, and of the bytes of SAMPLED pictures spread evenly.

    All bytes of a large data set would take hours to read. So a picture that was exchanged for one of the same length
    under the same name may go unnoticed; another file, order, label or size does not.
    """
    digest = hashlib.sha256(
        repr((image_size, crop, records.class_names, len(records))).encode("utf-8", "surrogateescape")
    )
    digest.update(np.ascontiguousarray(records.labels).data)
    digest.update(np.ascontiguousarray(records.sizes()).data)
    for index in range(len(records)):
        digest.update(records.name(index).encode("utf-8", "surrogateescape") + b"\0")
    for index in np.unique(np.linspace(0, len(records) - 1, SAMPLED).astype(int)).tolist():
        try:
            encoded = records.read(index)
            digest.update(encoded if isinstance(encoded, bytes) else encoded.read_bytes())
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()
