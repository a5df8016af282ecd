"""Joining the other processes of a run, and leaving them."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.training.pool import Pool
from tvmatch.training.ranks import leave_ranks


def join_and_leave() -> int:
    """The last reference to the process group is that of a wrapped module. A thread of Python here keeps the
    interpreter until it waits for something: what takes bad luck otherwise happens within a few rounds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(100)
    dist.init_process_group("gloo")
    module, total = DistributedDataParallel(torch.nn.Linear(4, 4)), torch.ones(1000)
    dist.all_reduce(total)
    leave_ranks()
    del module
    sys.setswitchinterval(before)
    return int(total[0])


def test_leaving_right_after_an_exchange_does_not_wait_for_ever() -> None:
    pool = Pool(6)
    try:
        for _ in range(6):
            assert pool.run(join_and_leave, 6) == [6] * 6
    finally:
        pool.close()
