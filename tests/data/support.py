"""What the tests of data share: crops of scikit-learn's two photographs, and where the small autoencoder lies."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

TAEF2 = Path(__file__).parent / "taef2"


@cache
def photographs() -> tuple[np.ndarray, np.ndarray]:
    """A temple and a flower, uint8 [427, 640, 3]."""
    china, flower = load_sample_images().images
    return china, flower


def crops(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares uint8 [count, size, size, 3] of the two in turn, and which of them each is of."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    corners = random.integers(0, [427 - size, 640 - size], (count, 2))
    images = [photographs()[n][y : y + size, x : x + size] for n, (y, x) in zip(labels, corners, strict=True)]
    return np.stack(images), labels


def write_folder(root: Path, count: int = 6, size: int = 16, suffix: str = "png") -> Path:
    """A folder with the crops, a sub-folder a class."""
    images, labels = crops(count, size)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / ("china", "flower")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03d}.{suffix}")
    return root
