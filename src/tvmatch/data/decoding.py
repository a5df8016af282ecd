"""One encoded picture, a file or its bytes, to one square uint8 RGB array."""

import io
import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE

from tvmatch.data.resizing import centre_square, random_square

# Pillow's own list holds formats that start other programs (EPS) or are no pictures (PDF, MPEG)
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
SIXTEEN_BITS = 65535
Crop = Literal["centre", "random"]


class UnusablePicture(Exception):
    """A file that gives no picture; the message is the reason, fit to stand behind the file's name."""


def open_picture(encoded: Path | bytes) -> Image.Image:
    """Open a file, or a file's bytes, by its content and read its header only. Raises `UnusablePicture`."""
    try:
        if isinstance(encoded, bytes):
            size, opened = len(encoded), io.BytesIO(encoded)
        else:
            status = os.stat(encoded)
            if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
                raise UnusablePicture("not a regular file")
            size, opened = status.st_size, encoded
        if size == 0:
            raise UnusablePicture("empty file")
        Image.init()
        image = Image.open(opened, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise UnusablePicture("not a picture, or of an unknown format") from error
    except UnusablePicture:
        raise
    except Exception as error:  # decoders answer damaged files with nearly every exception there is
        raise UnusablePicture(_reason(error)) from error
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        image.close()
        raise UnusablePicture(
            f"{width} x {height} pixels, more than the {limit} that are decoded (a decompression bomb?)"
        )
    return image


def decode(
    encoded: Path | bytes, size: int, crop: Crop = "centre", seed: int = 0
) -> tuple[np.ndarray, tuple[int, int], bool]:
    """Decode a file, or a file's bytes, to a square of `size` pixels, uint8 [size, size, 3].

    Applies the EXIF rotation; grey and palette pictures become RGB, transparency is laid over white, CMYK is
    converted without colour profiles, 16 bits are scaled to 8. Of several frames the first is taken.
    The square is the largest centred one, or with `crop` "random" one drawn from `seed` (`random_square`).
    Returns the array, the picture's own (width, height) and whether it holds several frames.
    Raises `UnusablePicture`.
    """
    try:
        with open_picture(encoded) as image:
            original = image.size
            # phones store previews beside a JPEG (MPO), which are no frames
            several_frames = image.format != "MPO" and getattr(image, "is_animated", False)
            # large JPEGs are decoded at 1/2, 1/4 or 1/8: several times faster, and still twice what is needed
            image.draft(None, (2 * size, 2 * size))
            # asked here: what is rotated has no format, and Pillow's mode "I" is also that of a PGM of 16 bits
            wide = image.format == "TIFF" and image.mode == "I" and max(image.tag_v2.get(BITSPERSAMPLE, (0,))) > 16
            rgb = to_rgb(ImageOps.exif_transpose(image), wide)
            picture = centre_square(rgb, size) if crop == "centre" else random_square(rgb, size, seed)
            if image.format == "PNG":
                _verify(encoded)
            return picture, original, several_frames
    except UnusablePicture:
        raise
    except Exception as error:
        raise UnusablePicture(_reason(error)) from error


def _verify(png: Path | bytes) -> None:
    """Compare the checksums of a PNG that could be decoded: where the rest of a file is zeros the picture's is black.
    It takes an opened image of its own."""
    with open_picture(png) as image:
        try:
            image.verify()
        except Exception as error:
            raise UnusablePicture(f"damaged: {_reason(error)}") from error


def to_rgb(image: Image.Image, wide: bool = False) -> Image.Image:
    """Any mode of Pillow to RGB; `UnusablePicture` where the range of the values is not known, as where whole numbers
    have more than 16 bits (`wide`): from 0 to 255 they are hardly black."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if wide or levels.min() < 0 or levels.max() > SIXTEEN_BITS:
            bits = " in 32 bits, of unknown range" if wide else ""
            raise UnusablePicture(f"values from {levels.min()} to {levels.max()}{bits}; save it with 8 or 16 bits")
        grey = Image.fromarray(np.round(levels * (255 / SIXTEEN_BITS)).astype(np.uint8))
        if "transparency" in image.info:  # one of the 65536 levels: of the 8-bit ones it would take others with it
            opaque = Image.fromarray(np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8))
            grey = Image.merge("LA", (grey, opaque))
        image = grey
    if image.mode == "F":
        raise UnusablePicture("floating-point pixels of unknown range; save it with 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """One line for the user: what the decoder said."""
    text = " ".join(str(error).split())
    return text[:120] if isinstance(error, OSError) and text else f"{type(error).__name__}: {text[:120]}"
