"""Bring pictures to one square size: the largest centred square, resized with an antialiased Lanczos filter."""

import numpy as np
from PIL import Image


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centred square of `image` (mode L or RGB) at size x size pixels.

    Cropping comes first: the short side decides the scale either way, and a picture of 2 x 50,000 pixels must not be
    blown up before most of it is thrown away.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if side != width or side != height:
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
