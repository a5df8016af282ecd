"""Bring pictures to one square size: a square is cut out and resized with an antialiased bicubic filter.

PyTorch's filter for 8-bit pictures gives Pillow's values to one level, in a fifth of the time of Pillow's Lanczos.
"""

import numpy as np
import torch
from PIL import Image

SMALLEST_CROP = 0.8  # of the short side, for a random crop


def centre_square(image: Image.Image, size: int) -> np.ndarray:
    """The centred square of `image` (mode L or RGB), uint8 [size, size, 1 or 3].

    Cropping comes first: the short side decides the scale either way, and a picture of 2 x 50,000 pixels must not be
    blown up before most of it is thrown away.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return _resized(image, left, top, side, size)


def random_square(image: Image.Image, size: int, seed: int) -> np.ndarray:
    """A square at a random place of `image` (mode L or RGB), uint8 [size, size, 1 or 3]; its side is 0.8 to 1 of the
    short side. The place and the side depend on `seed` and the picture's shape alone.
    """
    width, height = image.size
    shrink, x, y = np.random.Generator(np.random.Philox(key=seed)).random(3)
    side = max(1, round(min(width, height) * (1 - (1 - SMALLEST_CROP) * shrink)))
    return _resized(image, int(x * (width - side + 1)), int(y * (height - side + 1)), side, size)


def _resized(image: Image.Image, left: int, top: int, side: int, size: int) -> np.ndarray:
    """The square of `side` pixels from (left, top), resized."""
    if (side, side) != image.size:
        image = image.crop((left, top, left + side, top + side))
    levels = np.array(image).reshape(side, side, -1)
    if side == size:
        return levels
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(levels).permute(2, 0, 1)[None], size=(size, size), mode="bicubic", antialias=True
    )
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def resize_array(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, H, C] with C 1 or 3 -> uint8 [N, size, size, C]."""
    if images.shape[1] == size:
        return images
    channels = images.shape[3]
    resized = np.empty((len(images), size, size, channels), np.uint8)
    for index, picture in enumerate(images):
        square = Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if channels == 1 else picture))
        resized[index] = centre_square(square, size)
    return resized
