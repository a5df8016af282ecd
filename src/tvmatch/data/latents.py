"""Latents made by `tvmatch encode`, as a source: drawn anew from their posterior each time, normalised per channel."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tvmatch.data.encoding import FORMAT
from tvmatch.data.latent_shards import ShardTable
from tvmatch.data.latent_space import LatentSpace
from tvmatch.data.source import DataError, checked_indices

CHUNK, THREADS = 32, 8  # samples that a thread makes at once


class LatentsSource:
    """A `Source` over a folder of latents (its layout is described in `tvmatch.data.encoding`).

    folder      with a manifest.json
    image_size  None, or the size that was encoded: anything else is an error

    Checksums of the labels and sizes of the shards are compared when it opens, the name of each sample when it is read.
    Raises `DataError`.
    """

    skipped = ()

    def __init__(self, folder: str | Path, image_size: int | None = None) -> None:
        self.folder = Path(folder)
        content, manifest = _read(self.folder)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            self.latent_space = LatentSpace.from_header(manifest["latent_space"])
            self.class_names = tuple(manifest["class_names"])
            self.flips, self.has_deviation = bool(manifest["flips"]), bool(manifest["has_deviation"])
            shape = tuple(manifest["array_shape"])
            counts = [entry["pictures"] for entry in manifest["shards"]]
            labels = (self.folder / "labels.npy").read_bytes()
            if hashlib.sha256(labels).hexdigest() != manifest["labels_sha256"]:
                raise ValueError("labels.npy is not the one that belongs to the manifest")
            self._indices, self.labels = np.load(self.folder / "labels.npy", allow_pickle=False)
            if sum(counts) != len(self.labels):
                raise ValueError(f"{sum(counts)} latents for {len(self.labels)} labels")
            self._tables = [
                ShardTable(self.folder / _inside(entry["file"]), entry["pictures"], shape)
                for entry in manifest["shards"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.folder}: {' '.join(str(error).split())}. Encode it again into a new folder."
            ) from error
        self._starts = np.cumsum([0, *counts])
        self.shape = self.latent_space.shape
        self._mean, self._deviation = (
            np.array(values, np.float32).reshape(-1, 1, 1)
            for values in (self.latent_space.mean, self.latent_space.deviation)
        )
        self._threads = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="tvmatch-latents")
        if image_size not in (None, self.latent_space.image_size):
            raise DataError(
                f"{self.folder} holds latents of pictures of {self.latent_space.image_size} pixels, and image_size "
                f"says {image_size}: leave it out, or encode the pictures anew."
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def require_flips(self) -> None:
        """Raise `DataError` unless mirrored pictures were encoded."""
        if not self.flips:
            raise DataError(
                f"{self.folder}: mirrored pictures were not encoded (--no-flips); encode them, or train with --no-flip."
            )

    def batch(
        self, indices: np.ndarray, flips: np.ndarray | None = None, seeds: np.ndarray | None = None
    ) -> np.ndarray:
        """Normalised latents float32 [B, C, h, w]: of the mirrored picture where `flips` says so; mean plus deviation
        times the noise that `seeds` draw, or the mean where there are none."""
        indices = checked_indices(indices, len(self))
        if flips is not None and flips.any():
            self.require_flips()
        x = np.empty((len(indices), *self.shape), np.float32)

        def fill(here: slice) -> None:
            x[here] = self._normalised(
                indices[here], None if flips is None else flips[here], None if seeds is None else seeds[here]
            )

        # drawing the noise takes longest, and does so without Python's lock
        list(self._threads.map(fill, [slice(start, start + CHUNK) for start in range(0, len(indices), CHUNK)]))
        return x

    def _normalised(self, indices: np.ndarray, flips: np.ndarray | None, seeds: np.ndarray | None) -> np.ndarray:
        """The samples of a part of a batch."""
        stored = self._stored(indices)
        view = np.zeros(len(indices), np.int64) if flips is None else flips.astype(np.int64)
        chosen = stored[np.arange(len(indices)), view].astype(np.float32)
        latents = chosen[:, 0]
        if self.has_deviation and seeds is not None:
            for latent, deviation, seed in zip(latents, chosen[:, 1], seeds, strict=True):
                latent += deviation * _noise(seed, deviation.shape)
        latents -= self._mean
        latents /= self._deviation
        return latents

    def _stored(self, indices: np.ndarray) -> np.ndarray:
        """float16 [B, F, M, C, h, w] as they were written."""
        shards = np.searchsorted(self._starts, indices, "right") - 1
        stored = None
        for shard in np.unique(shards):
            here = shards == shard
            try:
                rows = self._tables[shard].rows(indices[here] - self._starts[shard], self._indices[indices[here]])
            except ValueError as error:
                raise DataError(f"{error}. Encode it again into a new folder.") from error
            if stored is None:
                stored = np.empty((len(indices), *rows.shape[1:]), rows.dtype)
            stored[here] = rows
        assert stored is not None
        return stored

    def close(self) -> None:
        """Nothing to end: idle threads go with the source."""


def _noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that depend on the seed alone."""
    return np.random.Generator(np.random.Philox(key=int(seed))).standard_normal(shape, np.float32)


def _read(folder: Path) -> tuple[bytes, dict[str, Any]]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(f"{folder}: the encoding is not complete; run its `tvmatch encode` command again to finish it.")
    content = path.read_bytes()
    try:
        manifest = json.loads(content)
        kind = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no manifest of latents, or damaged.") from error
    if kind != FORMAT:
        raise DataError(f"{path} is of format {kind!r}; this version reads {FORMAT!r}.")
    return content, manifest


def _inside(name: str) -> Path:
    """A shard's name, which must stay below the folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the manifest names a file outside its folder, {name!r}")
    return path
