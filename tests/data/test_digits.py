import numpy as np
import pytest

from tvmatch.data import DataError
from tvmatch.data.digits import digits_source


def test_digits_are_complete_and_split_without_overlap():
    train, held_out, everything = (digits_source(split) for split in ("train", "held_out", "all"))
    assert everything.shape == (1, 8, 8)
    assert everything.class_names == tuple("0123456789")
    assert len(everything) == 1797
    pixels = np.unique(everything.images)
    assert pixels.tolist() == [round(level * 255 / 16) for level in range(17)]
    whole = sorted(everything.images.reshape(1797, -1).tolist())
    assert sorted(np.concatenate([train.images, held_out.images]).reshape(1797, -1).tolist()) == whole
    share = np.bincount(held_out.labels) / np.bincount(everything.labels)
    np.testing.assert_allclose(share, 0.2, atol=0.003)


def test_the_split_of_the_digits_is_always_the_same():
    # a changed split would let a judge see what it must not: this hash changes only on purpose
    assert digits_source("train").fingerprint.startswith("e07b126e1b457549")


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="'test'"):
        digits_source("test")
