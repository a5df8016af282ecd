"""A data set whose decoded pictures lie in memory: what every loader here returns."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tvmatch.data.source import DataError


@dataclass(frozen=True, eq=False)
class InMemorySource:
    """A `Source` over arrays that were already checked (`arrays.source_from_arrays` checks a user's).

    images       uint8 [N, H, W, C], H == W
    labels       int64 [N], all -1 when there are no classes
    class_names  one name a class, empty when there are no classes
    skipped      (path, reason) of every file that was left out
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        # the fingerprint speaks for the content, so the content must not change after it was taken
        for name in ("images", "labels"):
            array = np.ascontiguousarray(getattr(self, name)).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """0 when there are no classes."""
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of pictures, labels and class names; taken once, when first asked for."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.data)
        digest.update(self.images.data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """The pictures at `indices` [B], each in 0 .. N - 1, as a new uint8 array [B, H, W, C]."""
        indices = np.asarray(indices)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise DataError(
                f"picture indices must be 0 to {len(self) - 1}, got {int(indices.min())} to {int(indices.max())}."
            )
        return self.images[indices]
