"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, with a fixed split."""

from functools import cache
from typing import Literal

import numpy as np
from sklearn.datasets import load_digits

from tvmatch.data.in_memory import InMemorySource
from tvmatch.data.resizing import resize_array
from tvmatch.data.source import DataError, check_image_size

GREY_LEVELS = 16  # the set holds 0 (paper) .. 16 (ink)
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 0


@cache
def _all_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures uint8 [1797, 8, 8, 1], labels int64 [1797], and whether each is held out, bool [1797]."""
    values, labels = load_digits(return_X_y=True)
    images = np.round(values * 255 / GREY_LEVELS).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    random = np.random.RandomState(SPLIT_SEED)  # its stream is frozen by NumPy (NEP 19): every version splits alike
    for digit in range(10):
        members = random.permutation(np.flatnonzero(labels == digit))
        held_out[members[: round(HELD_OUT_SHARE * len(members))]] = True
    return images, labels, held_out


def digits_source(
    split: Literal["train", "held_out", "all"] = "train", image_size: int | None = None
) -> InMemorySource:
    """The digits as a source of shape (1, 8, 8) with classes "0" .. "9".

    The 16 grey levels are spread over 0..255. `train` holds 80% of every class, `held_out` the other 20%, always the
    same ones. `image_size` enlarges the pictures; None keeps 8.
    """
    check_image_size(image_size)
    images, labels, held_out = _all_digits()
    chosen = {"train": ~held_out, "held_out": held_out, "all": np.ones_like(held_out)}
    if split not in chosen:
        raise DataError(f"the splits of the digits are {', '.join(chosen)}; got {split!r}.")
    images = images[chosen[split]]
    if image_size is not None:
        images = resize_array(images, image_size)
    return InMemorySource(images, labels[chosen[split]], tuple(str(digit) for digit in range(10)))
