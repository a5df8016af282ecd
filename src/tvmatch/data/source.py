"""What a data set is to the training loop.

Pictures are uint8 NHWC everywhere in `tvmatch.data`; the network sees float32 NCHW in [-1, 1].
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tvmatch.data.latent_space import LatentSpace


SHOWN = 3  # names of classes


class DataError(ValueError):
    """A data set that cannot be trained on; the message names what is wrong and what would be right."""


class Source(Protocol):
    """A data set of square pictures or of their latents, addressed by number.

    Any number can be asked for at any time, and the same arguments give the same bits: so the order of a run is a pure
    function of its seed and step, a resumed run needs only its step, and each rank asks for its own part.

    shape         (channels, height, width) of what the network sees, height == width
    labels        int64 [N], 0 .. num_classes - 1, or all -1 when there are no classes
    class_names   one name a class; empty when there are no classes
    fingerprint   hash of the content, so that a resumed run can refuse other data
    latent_space  what latents mean; None for pictures
    skipped       (name, reason) of what was left out until now
    """

    shape: tuple[int, int, int]
    labels: np.ndarray
    class_names: tuple[str, ...]
    latent_space: "LatentSpace | None"

    @property
    def num_classes(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]: ...

    def __len__(self) -> int: ...

    def batch(
        self, indices: np.ndarray, flips: np.ndarray | None = None, seeds: np.ndarray | None = None
    ) -> np.ndarray:
        """The samples at `indices` [B]: pictures as a new uint8 array [B, height, width, channels], or normalised
        latents as float32 [B, channels, height, width].

        flips  bool [B], which to mirror left to right
        seeds  int64 [B], for what is drawn anew each time: random crops, the noise of a posterior
        """
        ...

    def close(self) -> None:
        """End workers, and say what was left out."""
        ...


@runtime_checkable
class Pipelined(Protocol):
    """A source that can begin a batch before it is waited for, so that its workers always have something to do."""

    def begin(
        self, indices: np.ndarray, flips: np.ndarray | None = None, seeds: np.ndarray | None = None
    ) -> Callable[[], np.ndarray]:
        """Begin what `Source.batch` does; the answer waits for it."""
        ...


class PictureReader(Protocol):
    """A source whose pictures can be read in order, with a reason in the place of each that cannot be used."""

    shape: tuple[int, int, int]
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str: ...

    @property
    def skipped_when_opened(self) -> tuple[tuple[str, str], ...]: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> list[np.ndarray | str]: ...

    def name(self, index: int) -> str: ...

    def close(self) -> None: ...


def contents(source: Source | PictureReader) -> str:
    """What a data set holds in a few words, by which one sees that it is what was meant: `200 pictures in 10 classes:
    'tench', 'goldfish', 'shark', ...`."""
    what = "latents" if getattr(source, "latent_space", None) is not None else "pictures"
    names = source.class_names
    if not names:
        return f"{len(source)} {what} without classes"
    shown = ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
    return f"{len(source)} {what} in {len(names)} class{'es' if len(names) > 1 else ''}: {shown}"


def to_network_range(batch: Tensor) -> Tensor:
    """A batch of any source as float32 [B, C, H, W]: pictures (uint8) by `to_unit_range`, latents as they are."""
    return to_unit_range(batch) if batch.dtype == torch.uint8 else batch


def checked_indices(indices: np.ndarray, size: int) -> np.ndarray:
    """int64 [B], each 0 .. size - 1, or `DataError`."""
    indices = np.asarray(indices, np.int64)
    if len(indices) and not (indices.min() >= 0 and indices.max() < size):
        raise DataError(f"picture indices must be 0 to {size - 1}, got {int(indices.min())} to {int(indices.max())}.")
    return indices


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 pictures [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1]: x / 127.5 - 1."""
    if images.dtype != torch.uint8:
        raise ValueError(f"pictures must be uint8 (0..255), got {images.dtype}.")
    if images.dim() != 4:
        raise ValueError(f"pictures must have shape [B, H, W, C], got {list(images.shape)}.")
    return images.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_pictures(x: Tensor) -> Tensor:
    """Float data [B, C, H, W] in [-1, 1] -> uint8 pictures [B, H, W, C], rounded; values outside the range are clamped.

    The exact inverse of `to_unit_range`. Raises `ValueError` on NaN or infinity: they have no colour.
    """
    if not x.is_floating_point():
        raise ValueError(f"data must be floating point in [-1, 1], got {x.dtype}.")
    if x.dim() != 4:
        raise ValueError(f"data must have shape [B, C, H, W], got {list(x.shape)}.")
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        raise ValueError(f"{bad} of {len(x)} samples hold NaN or infinity; they cannot be shown as pictures.")
    levels = (x.float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def check_image_size(image_size: int | None) -> None:
    """Raise unless `image_size` is None or a whole number of at least 1."""
    if image_size is None:
        return
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise DataError(f"image_size must be a whole number of pixels, at least 1; got {image_size!r}.")
