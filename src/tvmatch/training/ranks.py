"""The processes of a run: who they are, and the few things that they must agree on.

torchrun, or Slurm through `runs/train_slurm.sh`, starts one process a GPU and tells each its number (RANK, of
WORLD_SIZE, LOCAL_RANK on its machine). Gradients travel inside DDP and FSDP; what is here are PyTorch's collectives on
the CPU, for decisions.
"""

import contextlib
import datetime
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from tvmatch.devices import choose_device
from tvmatch.launched import launched
from tvmatch.training.config import Strategy

Result = TypeVar("Result")

PAUSE = 0.1  # seconds for gloo's threads to put down the last exchange, see `leave_ranks`
TIMEOUT = datetime.timedelta(minutes=30)  # of ranks that wait for each other: one may compile longer than the others
# without the two dashes torchrun takes --run for an abbreviation of an option of its own
HINT = "torchrun --nproc-per-node 8 -m -- tvmatch train ..."
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers of as many bytes


# How gloo and NCCL say that the other end is gone
LOST = ("onnection closed", "onnection reset", "onnection refused", "roken pipe", "remote process exited")


class RanksError(RuntimeError):
    """The processes of a run differ, or one of them is gone."""


@dataclass(frozen=True)
class Ranks:
    """This process among the `count` of a run.

    control  a group of all of them on the CPU, for decisions of the main thread (None: there is one process)
    saving   another, for the background thread that writes checkpoints
    """

    device: torch.device
    strategy: Strategy = "single"  # never auto
    rank: int = 0
    count: int = 1
    control: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes the run's files and speaks."""
        return self.rank == 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around what all ranks do together: one that is gone is named so."""
        try:
            yield
        except RuntimeError as error:
            raise RanksError(self._gone(error)) from error

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[None]:
        """Around training steps, in which PyTorch exchanges tensors by itself: a rank that is gone is named so; all
        other errors pass."""
        try:
            yield
        except RuntimeError as error:
            known = type(error) is RuntimeError or isinstance(error, dist.DistError)
            if self.count == 1 or not known or not any(sign in str(error) for sign in LOST):
                raise
            raise RanksError(self._gone(error)) from error

    def _gone(self, error: RuntimeError) -> str:
        reason = str(error).splitlines()[0].split(". ")[0]  # without gloo's advice
        return f"rank {self.rank}: another process of this run is gone ({reason})."

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Call `function` on rank 0 alone; every rank gets what it returned, or raises what it raised."""
        if self.control is None:
            return function()
        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer[0] = function()
            except Exception as error:
                answer[1] = error
        with self.together():
            dist.broadcast_object_list(answer, group=self.control, group_src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks, element by element."""
        if self.control is None:
            return values
        values = values.cpu()
        with self.together():
            dist.all_reduce(values, group=self.control)
        return values / self.count

    def require_equal(self, when: str, values: Mapping[str, Any]) -> None:
        """Raise `RanksError` unless every rank gives the same values; the first that differs is named."""
        if self.control is None:
            return
        digests: list[Any] = [None] * self.count
        digest = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()
        everything: list[Any] = [None] * self.count
        with self.together():
            dist.all_gather_object(digests, digest, group=self.control)
            if len(set(digests)) == 1:
                return
            dist.all_gather_object(everything, dict(values), group=self.control)
        names = [name for name in everything[0] if any(other.get(name) != everything[0][name] for other in everything)]
        first = names[0] if names else "the names of the values"
        others = [rank for rank in range(self.count) if everything[rank].get(first) != everything[0].get(first)]
        raise RanksError(
            f"{when}: the ranks have drifted apart: {first} (and {max(len(names) - 1, 0)} more) of rank {others} "
            "differs from rank 0. Give every process the same command, code, data and kind of GPU. Nothing of this "
            "step was saved."
        )


class Vote:
    """The largest whole number that any rank gives, for every rank at the same call.

    Among several ranks an answer comes one call late: it travels while the step computes, so that nobody waits.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.travelling: tuple[dist.Work, Tensor] | None = None

    def __call__(self, mine: int) -> int:
        if self.ranks.control is None:
            return mine
        with self.ranks.together():
            earlier, value = self.travelling, torch.tensor([mine])
            work = dist.all_reduce(value, dist.ReduceOp.MAX, group=self.ranks.control, async_op=True)
            self.travelling = work, value
            if earlier is None:
                return 0
            earlier[0].wait()
            return int(earlier[1])

    def close(self, mine: int) -> int:
        """The last answer, for which every rank waits."""
        if self.ranks.control is None:
            return mine
        with self.ranks.together():
            value = torch.tensor([mine])
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.ranks.control)
            if self.travelling is not None:
                self.travelling[0].wait()
                value = torch.maximum(value, self.travelling[1])
            return int(value)


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sum of the bits of every tensor, read as whole numbers. What is sharded is left out: its ranks differ."""
    whole = {name: value for name, value in tensors.items() if not isinstance(value, DTensor)}
    sums = [value.detach().contiguous().view(WHOLE[value.itemsize]).sum(dtype=torch.int64) for value in whole.values()]
    by_device: dict[torch.device, list[int]] = {}
    for device in {each.device for each in sums}:  # one wait for a device
        by_device[device] = torch.stack([each for each in sums if each.device == device]).tolist()
    queues = {device: iter(values) for device, values in by_device.items()}
    return {name: next(queues[each.device]) for name, each in zip(whole, sums, strict=True)}


@contextlib.contextmanager
def join_ranks(strategy: Strategy, device_name: str) -> Iterator[Ranks]:
    """Find the other processes of this run, for the length of a block.

    `auto` is DDP where a launcher started several processes, else single. `ValueError` for a strategy that does not
    fit the way in which the process was started. In a program that has its own process group, that one is used.
    """
    device = choose_device(device_name)
    started = launched()
    rank, count = started or (0, 1)
    if strategy == "auto":
        strategy = "ddp" if count > 1 else "single"
    if strategy == "single":
        if count > 1:
            raise ValueError(f"{count} processes were started, but --strategy is single; use ddp or fsdp.")
        yield Ranks(device)
        return
    if started is None:
        raise ValueError(f"--strategy {strategy} needs a launcher that starts one process a GPU: {HINT}")
    if device.type == "cuda":
        device = _own_gpu(device)
        torch.cuda.set_device(device)
        # A recorded exchange would make its buffers known to the other GPUs, one after another while it is recorded
        os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    control, saving = (dist.new_group(backend="gloo", timeout=TIMEOUT) for _ in range(2))
    yield Ranks(device, strategy, rank, count, control, saving)
    if own:
        # after an error the others may be gone, and taking leave of them would wait: the end of the process does it
        leave_ranks()


def leave_ranks() -> None:
    """Give up the process group.

    gloo's threads put down the tensors of the last exchange a moment after it is done, holding a lock, and for that
    some need the interpreter. Whoever destroys the group holds the interpreter and waits for that lock: without a pause
    both can wait for ever (seen with torch 2.11 and 2.13, most with more ranks than cores).
    """
    time.sleep(PAUSE)
    dist.destroy_process_group()


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process: one each."""
    if device.index is not None:
        raise ValueError(f"--device {device} would put every process on one GPU; use --device cuda.")
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise ValueError(f"process {local} of this machine has no GPU; PyTorch sees {there}. Start one process a GPU.")
    return torch.device("cuda", local)
