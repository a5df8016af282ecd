"""Pictures mirrored left to right."""

import numpy as np


def mirrored(pictures: np.ndarray, flips: np.ndarray | None) -> np.ndarray:
    """Mirror those of `pictures` [B, H, W, C] where `flips` [B] is true; a new array if any is."""
    if flips is None or not flips.any():
        return pictures
    return np.where(flips[:, None, None, None], pictures[:, :, ::-1], pictures)
