"""A data set whose decoded pictures lie in memory."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tvmatch.data.mirror import mirrored
from tvmatch.data.source import checked_indices


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

    latent_space = None

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

    @property
    def skipped_when_opened(self) -> tuple[tuple[str, str], ...]:
        """All that was skipped: nothing is decoded later."""
        return self.skipped

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of pictures, labels and class names; taken once, when first asked for."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.data)
        digest.update(self.images.data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def batch(
        self, indices: np.ndarray, flips: np.ndarray | None = None, seeds: np.ndarray | None = None
    ) -> np.ndarray:
        """The pictures at `indices` [B], each in 0 .. N - 1, as a new uint8 array [B, H, W, C], mirrored where `flips`
        says so. `seeds` are not needed: nothing else is random here."""
        return mirrored(self.images[checked_indices(indices, len(self))], flips)

    def read(self, indices: np.ndarray) -> list[np.ndarray | str]:
        """The same as a list; every picture can be used."""
        return list(self.batch(indices))

    def name(self, index: int) -> str:
        """What messages call this picture."""
        return f"picture {index}"

    def close(self) -> None:
        """Nothing to end."""
