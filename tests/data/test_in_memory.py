import numpy as np
import pytest

from tvmatch.data import DataError, InMemorySource


def small(change=None) -> InMemorySource:
    images = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1)
    labels = np.array([0, 1, 0])
    names = ("a", "b")
    if change == "pixel":
        images[2, 1, 1, 0] += 1
    if change == "label":
        labels[2] = 1
    if change == "name":
        names = ("a", "c")
    if change == "shape":
        images = images.reshape(3, 1, 4, 1)
    return InMemorySource(images, labels, names)


@pytest.mark.parametrize("change", ["pixel", "label", "name", "shape"])
def test_the_fingerprint_sees_every_change(change):
    assert small().fingerprint == small().fingerprint
    assert small(change).fingerprint != small().fingerprint


def test_content_cannot_change_after_its_fingerprint():
    source = small()
    with pytest.raises(ValueError, match="read-only"):
        source.images[0] = 0
    batch = source.batch(np.array([1, 1]))
    batch[:] = 0  # a batch is the caller's own
    assert source.images[1].any()


def test_indices_outside_are_refused_instead_of_counted_from_the_end():
    with pytest.raises(DataError, match="0 to 2, got -1 to 1"):
        small().batch(np.array([1, -1]))
    with pytest.raises(DataError, match="got 3 to 3"):
        small().batch(np.array([3]))
