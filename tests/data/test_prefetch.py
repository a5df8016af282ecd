import gc
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from tvmatch.data import DataError, InMemorySource, Prefetcher, ShuffledStream

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(10)


class Failing(InMemorySource):
    """Fails at its third batch."""

    def batch(self, indices, flips=None, seeds=None):
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        if self.calls == 3:
            raise OSError("the disk went away")
        return super().batch(indices, flips, seeds)


def source(kind=InMemorySource) -> InMemorySource:
    return kind(IMAGES, LABELS, tuple("abcdefghij"))


def stream(**changes) -> ShuffledStream:
    return ShuffledStream(**{"size": 10, "batch": 4, "seed": 1, **changes})


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tvmatch-prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    assert not threads()
    yield
    deadline = time.monotonic() + 2
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def test_batches_are_those_of_the_stream():
    with Prefetcher(source(), stream(), start=3) as batches:
        for step, (images, labels) in enumerate(itertools.islice(batches, 6), 3):
            expected = stream().indices(step)
            assert images.dtype == torch.uint8
            assert labels.dtype == torch.int64
            assert labels.tolist() == expected.tolist()
            np.testing.assert_array_equal(images.numpy(), IMAGES[expected])


def test_flips_mirror_left_to_right_and_repeat_when_resumed():
    with Prefetcher(source(), stream(), flip=True) as batches:
        whole = list(itertools.islice(batches, 8))
    flips = []
    for step, (images, _) in enumerate(whole):
        plain = IMAGES[stream().indices(step)]
        for picture, before, flipped in zip(images.numpy(), plain, stream().flips(step), strict=True):
            np.testing.assert_array_equal(picture, before[:, ::-1] if flipped else before)
            flips.append(flipped)
    assert 0 < sum(flips) < len(flips)
    with Prefetcher(source(), stream(), start=5, flip=True) as batches:
        for resumed, first in zip(batches, whole[5:], strict=False):
            assert torch.equal(resumed[0], first[0])


def test_flips_do_not_depend_on_the_number_of_ranks():
    with Prefetcher(source(), stream(), flip=True) as alone:
        expected = next(alone)
    parts = []
    for rank in range(2):
        with Prefetcher(source(), stream(rank=rank, ranks=2), flip=True) as batches:
            parts.append(next(batches))
    assert torch.equal(torch.cat([images for images, _ in parts]), expected[0])
    assert torch.equal(torch.cat([labels for _, labels in parts]), expected[1])


def test_a_batch_is_the_consumers_own():
    own = source()
    with Prefetcher(own, stream()) as batches:
        images, labels = next(batches)
        images.zero_()
        labels.zero_()
    np.testing.assert_array_equal(own.images, IMAGES)
    np.testing.assert_array_equal(own.labels, LABELS)


def test_a_failure_in_the_thread_reaches_the_consumer_at_its_batch():
    with Prefetcher(source(Failing), stream()) as batches:
        next(batches)
        next(batches)
        with pytest.raises(OSError, match="the disk went away"):
            next(batches)
        with pytest.raises(RuntimeError, match="closed"):
            next(batches)


def test_the_thread_ends_when_the_consumer_fails():
    def consume():
        with Prefetcher(source(), stream()) as batches:
            next(batches)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    assert not threads()


def test_close_may_be_called_twice_and_ends_at_once():
    batches = Prefetcher(source(), stream())
    time.sleep(0.05)  # the thread waits for room
    started = time.monotonic()
    batches.close()
    batches.close()
    assert time.monotonic() - started < 1
    assert not threads()


def test_a_forgotten_prefetcher_leaves_no_thread():
    batches = Prefetcher(source(), stream())
    next(batches)
    del batches
    gc.collect()  # the fixture waits for the thread


def test_only_a_few_batches_are_made_ahead():
    steps = []

    class Counting(InMemorySource):
        def batch(self, indices, flips=None, seeds=None):
            steps.append(1)
            return super().batch(indices, flips, seeds)

    with Prefetcher(source(Counting), stream(), ahead=2) as batches:
        next(batches)
        time.sleep(0.3)
        assert len(steps) <= 1 + 2 + 1  # taken, ready, and one in hand


def test_wrong_arguments_are_refused_before_a_thread_starts():
    with pytest.raises(DataError, match="runs over 11 samples, but the data set holds 10"):
        Prefetcher(source(), stream(size=11))
    with pytest.raises(ValueError, match="got -1"):
        Prefetcher(source(), stream(), start=-1)
    with pytest.raises(ValueError, match="ahead=0"):
        Prefetcher(source(), stream(), ahead=0)


@pytest.mark.parametrize("change", [lambda batch: batch.astype(np.float32), lambda batch: batch[:, :, :3]])
def test_a_source_that_breaks_its_promise_is_named(change):
    class Wrong(InMemorySource):
        def batch(self, indices, flips=None, seeds=None):
            return change(super().batch(indices, flips, seeds))

    with Prefetcher(source(Wrong), stream()) as batches, pytest.raises(DataError, match=r"must give uint8 \[4, 4, 4"):
        next(batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_batches_arrive_on_the_gpu():
    with Prefetcher(source(), stream(), device="cuda") as batches:
        for step, (images, labels) in enumerate(itertools.islice(batches, 5)):
            assert images.is_cuda
            assert labels.tolist() == stream().indices(step).tolist()
