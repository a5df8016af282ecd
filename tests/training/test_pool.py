"""The processes that the tests of several ranks share."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.training.pool import Pool


def add_up(value: int) -> int:
    dist.init_process_group("gloo")
    total = torch.tensor(value + dist.get_rank())
    dist.all_reduce(total)
    return int(total)


def interrupt(process: int) -> None:
    if os.environ["RANK"] == "0":
        os.kill(process, signal.SIGUSR1)
    time.sleep(100)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGUSR1 raises, as pytest-timeout's alarm does."""

    def interrupted(*_: object) -> None:
        raise TimeoutError("in the middle of a run")

    before = signal.signal(signal.SIGUSR1, interrupted)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_run_that_was_broken_off_answers_in_no_other(interruptible: None) -> None:
    pool = Pool(2)
    try:
        assert pool.run(add_up, 2, 1) == [3, 3]
        with pytest.raises(TimeoutError, match="in the middle of a run"):
            pool.run(interrupt, 2, os.getpid())
        assert pool.run(add_up, 2, 5) == [11, 11]
    finally:
        pool.close()
