import numpy as np
import pytest

from tvmatch.data.digits import digits_source
from tvmatch.metrics import judge as judge_module
from tvmatch.metrics.judge import DigitsJudge, digits_frechet


@pytest.fixture(scope="module")
def judge() -> DigitsJudge:
    return DigitsJudge()


HELD_OUT = digits_source("held_out")


def test_it_reads_real_digits_that_it_has_not_seen(judge):
    assert judge.accuracy_on_held_out >= 0.98
    assert judge.accuracy_on_held_out == judge.class_accuracy(HELD_OUT.images, HELD_OUT.labels)
    assert judge._classifier.shape_fit_ == (len(digits_source("train")), 64)  # and nothing else


def test_two_judges_agree(judge):
    pictures = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    np.testing.assert_array_equal(judge.read(pictures), DigitsJudge().read(pictures))


def test_the_wrong_class_and_noise_are_seen(judge):
    assert judge.class_accuracy(HELD_OUT.images, (HELD_OUT.labels + 1) % 10) < 0.02
    noise = np.random.default_rng(0).integers(0, 256, HELD_OUT.images.shape, dtype=np.uint8)
    assert judge.class_accuracy(noise, HELD_OUT.labels) < 0.3


def test_a_judge_that_reads_badly_is_refused(monkeypatch):
    monkeypatch.setattr(judge_module, "LEAST_ACCURACY", 0.999)
    with pytest.raises(RuntimeError, match=r"reads only 9\d\.\d% of the real held-out digits"):
        DigitsJudge()


def test_the_distance_tells_real_from_worse():
    real = digits_frechet(HELD_OUT.images)
    blurred = (HELD_OUT.images // 2 + np.roll(HELD_OUT.images, 1, axis=2) // 2).astype(np.uint8)
    one_class_missing = digits_frechet(HELD_OUT.images[HELD_OUT.labels != 0])
    assert digits_frechet(digits_source("train").images) < 1e-12
    assert 0 < real < 0.15
    assert digits_frechet(blurred) > 3 * real
    assert one_class_missing > 1.2 * real
    assert digits_frechet(255 - HELD_OUT.images) > 50 * real


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 1), np.float32),
        np.zeros((2, 1, 8, 8), np.uint8),
        np.zeros((2, 16, 16, 1), np.uint8),
        np.zeros((0, 8, 8, 1), np.uint8),
    ],
)
def test_other_pictures_are_refused(judge, images):
    for measure in (judge.read, digits_frechet, lambda x: judge.class_accuracy(x, np.zeros(len(x), np.int64))):
        with pytest.raises(ValueError, match=r"uint8 pictures \[N, 8, 8, 1\], got"):
            measure(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0], "integers .*float64"),
        ([0, 1, 2], r"integers \[2\].*\[3\]"),
        ([0, -1], "0 to 9, got -1 to 0"),
        ([0, 10], "got 0 to 10"),
    ],
)
def test_wrong_labels_are_refused(judge, labels, message):
    with pytest.raises(ValueError, match=message):
        judge.class_accuracy(HELD_OUT.images[:2], np.array(labels))


def test_one_picture_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 features, got 1"):
        digits_frechet(HELD_OUT.images[:1])
