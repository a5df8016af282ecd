"""The judge of the digits: a classifier that has seen real digits only, and a Frechet distance in pixels.

Both are small on purpose. Features of a network trained on photographs mean nothing at 8 x 8 pixels, where the 64
pixels themselves are good features: a support vector machine on them reads 98.6% of the real held-out digits. The
Frechet distance is taken in the same 64 pixel values, scaled to 0..1. It compares means and covariances only: it sees
missing classes, wrong ink and blur, but not the shape of a stroke, which is what the classifier is for.
Its values are comparable with each other, not with an FID.
"""

from functools import cache

import numpy as np
from sklearn.svm import SVC

from tvmatch.data.digits import GREY_LEVELS, digits_source
from tvmatch.metrics.frechet import FeatureStatistics, frechet_distance

LEAST_ACCURACY = 0.98


class DigitsJudge:
    """Reads digits. Trained on the training split when made (a fraction of a second), always to the same classifier.

    accuracy_on_held_out  share of the real held-out digits that it reads right; `RuntimeError` if below 0.98, because
                          then its verdict on samples would mean nothing
    """

    def __init__(self) -> None:
        real = digits_source("train")
        # the setting of scikit-learn's own example on these digits: not tuned on the held-out ones
        self._classifier = SVC(kernel="rbf", gamma=0.001, C=1.0).fit(_grey_levels(real.images), real.labels)
        held_out = digits_source("held_out")
        self.accuracy_on_held_out = self.class_accuracy(held_out.images, held_out.labels)
        if self.accuracy_on_held_out < LEAST_ACCURACY:
            raise RuntimeError(
                f"the judge reads only {self.accuracy_on_held_out:.1%} of the real held-out digits, at least "
                f"{LEAST_ACCURACY:.0%} is needed; check the installation of scikit-learn."
            )

    def read(self, images: np.ndarray) -> np.ndarray:
        """The digits, int64 [N], that it sees in pictures uint8 [N, 8, 8, 1]."""
        return self._classifier.predict(_grey_levels(_checked(images))).astype(np.int64)

    def class_accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of the pictures uint8 [N, 8, 8, 1] that are read as their label, integers [N] in 0..9."""
        images, labels = _checked(images), np.asarray(labels)
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise ValueError(
                f"labels must be integers [{len(images)}], one a picture; got {labels.dtype} {list(labels.shape)}."
            )
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"labels must be 0 to 9, got {int(labels.min())} to {int(labels.max())}.")
        return float((self.read(images) == labels).mean())


def digits_frechet(images: np.ndarray) -> float:
    """Frechet distance of pictures uint8 [N, 8, 8, 1] to the training digits, in the 64 pixel values scaled to 0..1."""
    return frechet_distance(_pixel_statistics(_checked(images)), _real_statistics())


@cache
def _real_statistics() -> FeatureStatistics:
    return _pixel_statistics(digits_source("train").images)


def _pixel_statistics(images: np.ndarray) -> FeatureStatistics:
    return FeatureStatistics.from_features(images.reshape(len(images), -1) / 255)


def _grey_levels(images: np.ndarray) -> np.ndarray:
    """uint8 pictures -> float64 [N, 64] on the scale 0..16 of the original digits, which gamma is chosen for."""
    return images.reshape(len(images), -1) * (GREY_LEVELS / 255)


def _checked(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != (8, 8, 1) or not len(images):
        raise ValueError(f"the judge reads uint8 pictures [N, 8, 8, 1], got {images.dtype} {list(images.shape)}.")
    return images
