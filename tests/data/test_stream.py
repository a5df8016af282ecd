import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmatch.data import ShuffledStream

sizes = st.integers(1, 40)
batches = st.integers(1, 60)
seeds = st.integers(0, 2**63)


@settings(deadline=None, max_examples=60)
@given(sizes, batches, seeds, st.integers(0, 5))
def test_every_epoch_is_a_permutation(size, batch, seed, epoch):
    stream = ShuffledStream(size, batch, seed)
    first, last = epoch * size // batch, ((epoch + 1) * size - 1) // batch
    row = np.concatenate([stream.indices(step) for step in range(first, last + 1)])
    start = epoch * size - first * batch
    assert sorted(row[start : start + size]) == list(range(size))


@settings(deadline=None, max_examples=60)
@given(sizes, batches, seeds, st.integers(0, 30))
def test_a_fresh_stream_continues_where_another_stopped(size, batch, seed, step):
    old, fresh = ShuffledStream(size, batch, seed), ShuffledStream(size, batch, seed)
    for before in range(step):
        old.indices(before)
    for after in (step, step + 1, step):  # also back again
        np.testing.assert_array_equal(old.indices(after), fresh.indices(after))
        np.testing.assert_array_equal(old.flips(after), fresh.flips(after))


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 12), st.integers(1, 5), seeds, st.integers(0, 20))
def test_all_ranks_together_see_what_one_would(size, share, ranks, seed, step):
    batch = share * ranks
    streams = [ShuffledStream(size, batch, seed, rank, ranks) for rank in range(ranks)]
    alone = ShuffledStream(size, batch, seed)
    assert all(stream.indices(step).shape == (share,) for stream in streams)
    np.testing.assert_array_equal(np.concatenate([s.indices(step) for s in streams]), alone.indices(step))
    np.testing.assert_array_equal(np.concatenate([s.flips(step) for s in streams]), alone.flips(step))


def test_epochs_seeds_and_flips_differ():
    stream = ShuffledStream(1000, 1000, seed=3)
    assert stream.indices(0).dtype == np.int64
    assert (stream.indices(0) != stream.indices(1)).mean() > 0.9
    assert (stream.indices(0) != ShuffledStream(1000, 1000, seed=4).indices(0)).mean() > 0.9
    assert 0.4 < stream.flips(0).mean() < 0.6
    assert (stream.flips(0) != stream.flips(1)).any()


def test_the_order_never_changes_between_versions():
    # a run resumed with a newer version must go on with the same samples
    assert ShuffledStream(10, 10, seed=0).indices(0).tolist() == [6, 5, 1, 7, 3, 0, 4, 8, 2, 9]


def test_distant_steps_are_cheap():
    stream = ShuffledStream(1000, 64, seed=0)
    assert len(stream.indices(10**12)) == 64
    for step in (*range(10**6, 10**6 + 40), 3):
        stream.indices(step)
        assert len(stream._permutations) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "at least 1 sample, got size 0"),
        ({"batch": 0}, "positive multiple of 1; got 0"),
        ({"batch": 9, "ranks": 2}, "positive multiple of 2; got 9"),
        ({"rank": 2, "ranks": 2}, "got rank 2 of 2"),
        ({"rank": -1, "ranks": 2}, "got rank -1 of 2"),
        ({"ranks": 0}, "got rank 0 of 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShuffledStream(**{"size": 10, "batch": 4, "seed": 0, **arguments})


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="count from 0, got -1"):
        ShuffledStream(10, 4, 0).indices(-1)
