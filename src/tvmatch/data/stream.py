"""Which samples each training step sees: a pure function of the step, so that a resumed run needs only its number."""

import numpy as np

# The streams drawn from one seed are kept apart: SeedSequence pads [seed, epoch] and [seed, step] alike
SHUFFLES, FLIPS, SEEDS = 0, 1, 2


def random_generator(purpose: int, *entropy: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments (counter-based Philox)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy, spawn_key=(purpose,))))


class ShuffledStream:
    """An endless row of shuffled epochs, cut into batches.

    Epoch e is a permutation of 0 .. size - 1 drawn from (seed, e); the epochs follow each other without a gap, and
    step k takes the `batch` samples from position k * batch on. So no sample is dropped, and a batch may reach into the
    next epoch. Of every batch rank r takes the r-th of `ranks` equal parts: all ranks together see exactly what a
    single one would. The training loop builds on this: it makes its random draws for the whole batch and cuts out the
    samples from number `first` on, so a source that shuffles differently must still be a function of (seed, step)
    alone and share its batches in this order.

    size   number of samples in the data set
    batch  samples of one step over all ranks together, a multiple of `ranks`
    """

    def __init__(self, size: int, batch: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        if size < 1:
            raise ValueError(f"a stream needs at least 1 sample, got size {size}.")
        if ranks < 1 or not 0 <= rank < ranks:
            raise ValueError(f"rank must be 0 to ranks - 1, got rank {rank} of {ranks}.")
        if batch < 1 or batch % ranks:
            raise ValueError(
                f"the batch is shared equally by all ranks, so it must be a positive multiple of {ranks}; got {batch}."
            )
        if seed < 0:
            raise ValueError(f"the seed must be 0 or more, got {seed}.")
        self.size, self.batch, self.seed, self.rank, self.ranks = size, batch, seed, rank, ranks
        self._permutations: dict[int, np.ndarray] = {}

    @property
    def share(self) -> int:
        """Samples of one step on this rank."""
        return self.batch // self.ranks

    @property
    def first(self) -> int:
        """The number of this rank's first sample within every batch."""
        return self.rank * self.share

    def indices(self, step: int) -> np.ndarray:
        """int64 [share]: this rank's samples of training step `step` (from 0); any step can be asked at once."""
        if step < 0:
            raise ValueError(f"training steps count from 0, got {step}.")
        first = step * self.batch + self.first
        last = first + self.share - 1
        parts = []
        for epoch in range(first // self.size, last // self.size + 1):
            start = max(first - epoch * self.size, 0)
            stop = min(last - epoch * self.size, self.size - 1) + 1
            parts.append(self._permutation(epoch)[start:stop])
        return np.concatenate(parts)

    def flips(self, step: int) -> np.ndarray:
        """bool [share]: which of this rank's samples of `step` are mirrored, each with probability 1/2.

        Drawn for the whole batch and then shared, so that the number of ranks does not change the training.
        """
        whole = random_generator(FLIPS, self.seed, step).random(self.batch) < 0.5
        return whole[self.first : self.first + self.share]

    def seeds(self, step: int) -> np.ndarray:
        """int64 [share], 0 or more: for what each of this rank's samples of `step` draws anew (random crops, posterior
        noise); drawn for the whole batch as the flips are."""
        whole = random_generator(SEEDS, self.seed, step).integers(2**63, size=self.batch)
        return whole[self.first : self.first + self.share]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            # a batch lies in one epoch or across the border to the next: two are enough
            self._permutations = {old: order for old, order in self._permutations.items() if old == epoch - 1}
            self._permutations[epoch] = random_generator(SHUFFLES, self.seed, epoch).permutation(self.size)
        return self._permutations[epoch]
