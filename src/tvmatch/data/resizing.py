"""Bring pictures to one square size: a square is cut out and resized with an antialiased Lanczos filter."""

import numpy as np
from PIL import Image

SMALLEST_CROP = 0.8  # of the short side, for a random crop


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centred square of `image` (mode L or RGB) at size x size pixels.

    Cropping comes first: the short side decides the scale either way, and a picture of 2 x 50,000 pixels must not be
    blown up before most of it is thrown away.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return _resized(image, left, top, side, size)


def random_square(image: Image.Image, size: int, seed: int) -> Image.Image:
    """A square at a random place of `image` (mode L or RGB), at size x size pixels; its side is 0.8 to 1 of the short
    side. The place and the side depend on `seed` and the picture's shape alone.
    """
    width, height = image.size
    shrink, x, y = np.random.Generator(np.random.Philox(key=seed)).random(3)
    side = max(1, round(min(width, height) * (1 - (1 - SMALLEST_CROP) * shrink)))
    return _resized(image, int(x * (width - side + 1)), int(y * (height - side + 1)), side, size)


def _resized(image: Image.Image, left: int, top: int, side: int, size: int) -> Image.Image:
    """The square of `side` pixels from (left, top), resized."""
    if (side, side) != image.size:
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)


def resize_array(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, H, C] with C 1 or 3 -> uint8 [N, size, size, C]."""
    if images.shape[1] == size:
        return images
    channels = images.shape[3]
    resized = np.empty((len(images), size, size, channels), np.uint8)
    for index, picture in enumerate(images):
        square = Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if channels == 1 else picture))
        resized[index] = np.asarray(centre_square(square, size)).reshape(size, size, channels)
    return resized
