"""What a data set is to the training loop, and the one place that turns a name or a path into one.

Pictures are uint8 NHWC everywhere in `tvmatch.data`; the network sees float32 NCHW in [-1, 1].
"""

import difflib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class DataError(ValueError):
    """A data set that cannot be trained on; the message names what is wrong and what would be right."""


class Source(Protocol):
    """A data set of square pictures, addressed by index.

    shape        (channels, height, width) of every picture, height == width
    labels       int64 [N], 0 .. num_classes - 1, or all -1 when there are no classes
    class_names  one name a class; empty when there are no classes
    fingerprint  hash of the content, so that a resumed run can refuse other data
    """

    shape: tuple[int, int, int]
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """The pictures at `indices` [B] as a new uint8 array [B, height, width, channels]."""
        ...


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


def open_source(spec: str, image_size: int | None = None, strict: bool = False) -> Source:
    """Open a data set.

    spec        `digits` (embedded, the training split), the path of an `.npz` file, or of a folder of pictures
                (`./digits` for a folder of that name)
    image_size  height and width in pixels that every picture is brought to; None keeps the size the data has
    strict      a file of a picture folder that cannot be used is an error instead of skipped with a warning

    Raises `DataError` for an unknown name, a missing path, and everything that is wrong with the data itself.
    """
    # imported here: scikit-learn alone takes a second, and the loaders build on this module
    check_image_size(image_size)
    if spec == "digits":
        from tvmatch.data.digits import digits_source

        return digits_source("train", image_size)
    path = Path(spec).expanduser()
    if not spec or not path.exists():
        raise DataError(_unknown(spec, path))
    if path.is_dir():
        from tvmatch.data.folder import folder_source

        return folder_source(path, image_size, strict)
    if path.suffix.lower() == ".npz":
        from tvmatch.data.arrays import npz_source

        return npz_source(path, image_size)
    raise DataError(
        f"data {spec!r} is a file that is not an .npz; give an .npz file with `images` (and `labels`), a folder of "
        "pictures, or `digits`."
    )


def _unknown(spec: str, path: Path) -> str:
    """Say what was probably meant by a spec that is neither a known name nor an existing path."""
    choices = "Give `digits`, an .npz file or a folder of pictures."
    if difflib.get_close_matches(spec.lower(), ["digits"]):
        return f"unknown data {spec!r}: did you mean `digits`?"
    if not spec:
        return f"the name of the data is empty. {choices}"
    if not path.parent.is_dir():
        return f"no such data: {spec!r} (there is no folder {str(path.parent.absolute())!r} either). {choices}"
    neighbours = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, neighbours, n=1)
    meant = f" Did you mean {str(path.parent / close[0])!r}?" if close else ""
    return f"no such file or folder: {str(path.absolute())!r}.{meant} {choices}"
