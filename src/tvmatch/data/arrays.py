"""Arrays of pictures, in an `.npz` file or in memory: `images`, and optionally `labels` and `class_names`."""

import difflib
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tvmatch.data.in_memory import InMemorySource
from tvmatch.data.memory import require_memory
from tvmatch.data.resizing import resize_array
from tvmatch.data.source import DataError, check_image_size

KEYS = ("images", "labels", "class_names")
MOST_CLASSES = 1_000_000  # beyond this the "labels" are identifiers, and an embedding of that size is a mistake
LAYOUT = (
    "`images` uint8 [N, H, W, C] or [N, H, W], optional `labels` integers [N] from 0, optional `class_names` strings"
)


def npz_source(path: str | Path, image_size: int | None = None) -> InMemorySource:
    """Read an `.npz` file with `images` uint8 [N, H, W, C] (C = 1 or 3; or [N, H, W] for grey), optional `labels`
    integers [N] from 0 and optional `class_names` strings [K].

    With an `image_size` other than H every picture is resized to it (Lanczos). Pickled content is never loaded.
    Raises `DataError` that names the file, the array and the remedy.
    """
    check_image_size(image_size)
    path = Path(path)
    arrays = _read(path)
    unknown = [name for name in arrays if name not in KEYS]
    if "images" not in arrays:
        found = ", ".join(repr(name) for name in arrays) or "nothing"
        raise DataError(f"{path}: there is no array `images`, only {found}. The file holds {LAYOUT}.")
    if unknown:  # a `label` that was passed over would silently train without classes
        close = difflib.get_close_matches(unknown[0], KEYS, n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(f"{path}: unknown array {unknown[0]!r}{meant}. The file holds {LAYOUT}; leave others out.")
    return source_from_arrays(
        arrays["images"], arrays.get("labels"), arrays.get("class_names"), image_size, origin=str(path)
    )


def source_from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: np.ndarray | tuple[str, ...] | None = None,
    image_size: int | None = None,
    origin: str = "arrays",
) -> InMemorySource:
    """A source over arrays as in `npz_source`, checked; `origin` is the name that errors give to them."""
    check_image_size(image_size)
    images = _checked_images(np.asarray(images), origin)
    if image_size is not None and image_size != images.shape[1]:
        needed = len(images) * image_size**2 * images.shape[3]
        require_memory(needed, f"{origin}: {len(images)} pictures of {image_size} pixels", "Choose a smaller size.")
        images = resize_array(images, image_size)
    if labels is None:
        if class_names is not None:
            raise DataError(f"{origin}: `class_names` without `labels`; add `labels`, or leave the names out.")
        return InMemorySource(images, np.full(len(images), -1, np.int64))
    labels = _checked_labels(np.asarray(labels), len(images), origin)
    return InMemorySource(images, labels, _checked_names(class_names, int(labels.max()) + 1, origin))


def _read(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file; `DataError` if it is no such file, cut short, or holds pickled objects."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            raise DataError(f"{path} {_kind(file.read(6))}.")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            needed = sum(member.file_size for member in archive.infolist())
        require_memory(needed, f"{path}: its arrays", "Use a smaller file.")
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except ValueError as error:
                    if "allow_pickle" not in str(error):
                        raise
                    raise DataError(
                        f"{path}: array {name!r} holds Python objects, which are never loaded (they can run code). "
                        f"Save plain arrays: {LAYOUT}."
                    ) from error
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise DataError(f"{path} is cut short or damaged ({error}); copy or write it again.") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy hands out a member that is no array as raw bytes
            raise DataError(f"{path}: {name!r} is not an array; write the file with np.savez.")
    return arrays


def _kind(start: bytes) -> str:
    """What a file that is no zip archive is, told from its first bytes, and what to do about it."""
    if not start:
        return "is empty"
    if start.startswith(b"PK\x03\x04"):
        return "is cut short or damaged; copy or write it again"
    if start.startswith(b"\x93NUMPY"):
        return "is a single .npy array; save it with np.savez(path, images=...)"
    if start.startswith(b"\x80"):
        return "is a pickle, which is never loaded; save it with np.savez(path, images=...)"
    return "is not an .npz file; write one with np.savez(path, images=..., labels=...)"


def _checked_images(images: np.ndarray, origin: str) -> np.ndarray:
    """Return uint8 [N, H, W, C], or raise."""
    shape = list(images.shape)
    if images.dtype != np.uint8:
        raise DataError(f"{origin}: `images` must be uint8 (0..255), got {images.dtype}. {_conversion(images)}")
    if images.ndim not in (3, 4):
        raise DataError(f"{origin}: `images` must have shape [N, H, W, C], or [N, H, W] for grey; got {shape}.")
    if images.size == 0:
        raise DataError(f"{origin}: `images` holds no pictures, its shape is {shape}.")
    if images.ndim == 3:
        images = images[..., None]
    _, height, width, channels = images.shape
    if height != width:
        if images.ndim == 4 and height in (1, 3) and width == channels:
            raise DataError(
                f"{origin}: `images` of shape {shape} look like [N, C, H, W]; save images.transpose(0, 2, 3, 1)."
            )
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        raise DataError(
            f"{origin}: pictures must be square, got {height} x {width}. Crop them, for example "
            f"images[:, {top}:{top + side}, {left}:{left + side}], or pad them."
        )
    if channels not in (1, 3):
        raise DataError(f"{origin}: pictures have 1 channel (grey) or 3 (RGB), got {channels} in shape {shape}.")
    return images


def _conversion(images: np.ndarray) -> str:
    """How to make uint8 pictures of what was given."""
    if images.dtype.kind == "f" and images.size:
        if not np.isfinite(images).all():
            return "They also hold NaN or infinity, which have no colour: find out where those come from first."
        low, high = float(images.min()), float(images.max())
        if low >= 0 and high <= 1:
            recipe = "(images * 255).round().astype(np.uint8)"
        elif low >= -1 and high <= 1:
            recipe = "((images + 1) * 127.5).round().astype(np.uint8)"
        else:
            recipe = "images.round().clip(0, 255).astype(np.uint8), if 0..255 is their range"
        return f"Their values run from {low:.4g} to {high:.4g}: convert with {recipe}."
    if images.dtype.kind in "iu" and images.size:
        low, high = int(images.min()), int(images.max())
        if low >= 0 and high <= 255:
            return "Convert with images.astype(np.uint8)."
        return f"Their values run from {low} to {high}: scale them to 0..255 first."
    if images.dtype.kind == "b":
        return "Convert with images.astype(np.uint8) * 255."
    return "Save the pixel values themselves."


def _checked_labels(labels: np.ndarray, count: int, origin: str) -> np.ndarray:
    """Return int64 [count] from 0, or raise. A class without a picture is allowed."""
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{origin}: `labels` must be integers from 0, got {labels.dtype}. Convert with labels.astype(np.int64), "
            "if they are class numbers."
        )
    if labels.shape != (count,):
        raise DataError(f"{origin}: `labels` must have shape [{count}], one a picture; got {list(labels.shape)}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(
            f"{origin}: `labels` must be 0 or more, got {low}. For data without classes leave `labels` out."
        )
    if high >= MOST_CLASSES:
        raise DataError(
            f"{origin}: label {high} would mean {high + 1} classes; number them from 0 "
            "(np.unique(labels, return_inverse=True)[1])."
        )
    return labels.astype(np.int64)


def _checked_names(class_names: np.ndarray | tuple[str, ...] | None, least: int, origin: str) -> tuple[str, ...]:
    """Return the class names, at least `least` of them; numbers as text where none are given."""
    if class_names is None:
        return tuple(str(label) for label in range(least))
    names = np.asarray(class_names)
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{origin}: `class_names` must be strings [K], got {names.dtype} {list(names.shape)}.")
    if len(names) < least:
        raise DataError(f"{origin}: {len(names)} `class_names`, but the labels run up to {least - 1}; give {least}.")
    if len(set(names.tolist())) < len(names):
        twice = next(name for name in names.tolist() if names.tolist().count(name) > 1)
        raise DataError(f"{origin}: the class name {twice!r} is given twice; `class_names` must differ.")
    return tuple(names.tolist())
