"""Shards of latents: WebDataset tar files, a picture two members, `KEY.cls` (the class number as text) and `KEY.npy`.

The array is float16 [F, M, C, h, w]: F = 2 if the mirrored picture was encoded too, M = 2 where the codec gives a
deviation beside the mean. All samples of a data set take the same number of bytes, so a shard is also a table: sample i
begins at i times that number, and a reader maps the file into memory.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

BLOCK = 512  # of a tar file
NO_CLASS = -1


def shard_name(number: int) -> str:
    """File name of shard `number`, from 0."""
    return f"latents-{number:05d}.tar"


def key_of(index: int) -> str:
    """What the sample of picture `index` is called."""
    return f"{index:09d}"


def to_npy(latents: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, latents, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def write_shard(file: BinaryIO, indices: Sequence[int], labels: Sequence[int], latents: Sequence[np.ndarray]) -> None:
    """Write samples with nothing in the file that depends on who writes it, and when."""
    writer = require_webdataset().TarWriter(file, user="tvmatch", group="tvmatch", mode=0o644, mtime=0, encoder=False)
    try:
        for index, label, array in zip(indices, labels, latents, strict=True):
            # the label first: the members of a sample are written in the order of their names
            writer.write({"__key__": key_of(index), "cls": str(label).encode(), "npy": to_npy(array)})
    finally:
        writer.close()


def sample_bytes(shape: tuple[int, ...]) -> int:
    """Bytes that one sample with an array of this shape takes in a shard."""
    npy = len(to_npy(np.zeros(shape, np.float16)))
    return BLOCK + BLOCK + BLOCK + -(-npy // BLOCK) * BLOCK


class ShardTable:
    """The samples of one shard, mapped into memory. Raises `ValueError` for a file too short for `count` of them."""

    def __init__(self, path: Path, count: int, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        each = sample_bytes(shape)
        if os.path.getsize(path) < count * each:
            raise ValueError(f"{path} is cut short: {os.path.getsize(path)} bytes for {count} latents of {each}")
        self._table = np.memmap(path, np.uint8, "r", shape=(count, each)) if count else np.empty((0, each), np.uint8)
        self._npy = to_npy(np.zeros(shape, np.float16))
        self._header = len(self._npy) - 2 * int(np.prod(shape))

    def rows(self, numbers: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """float16 [B, *shape] of samples `numbers`, which must be of pictures `indices`."""
        rows = self._table[numbers]
        names = [f"{key_of(int(index))}.npy".encode() for index in indices]
        starts = 2 * BLOCK
        header = np.frombuffer(self._npy[: self._header], np.uint8)
        for row, name in zip(rows, names, strict=True):
            found = bytes(row[starts : starts + len(name) + 1])
            array = row[starts + BLOCK : starts + BLOCK + self._header]
            if found != name + b"\0" or not np.array_equal(array, header):
                raise ValueError(f"{self.path} is damaged: {name.decode()} is not where it was written")
        first = starts + BLOCK + self._header
        values = np.ascontiguousarray(rows[:, first : first + 2 * int(np.prod(self.shape))])
        return values.view(np.float16).reshape(len(rows), *self.shape)


def require_webdataset() -> Any:
    """The library that writes shards; `ValueError` where it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise ValueError("writing shards of latents needs an extra: pip install 'tvmatch[data]'") from error
    return webdataset
