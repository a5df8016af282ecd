"""One pass over pictures: the moments of their features, and some features as they are, on any number of processes.

Each process takes a share of the numbers in order and saves what it has in one small file now and then, so that a pass
that was killed continues. Nothing grows with the number of pictures.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tvmatch.data.progress import counting
from tvmatch.files import locked, replacing
from tvmatch.metrics.frechet import FeatureAccumulator, FeatureStatistics
from tvmatch.training.ranks import Ranks

SAVE_SECONDS = 20.0  # between two savings of a pass


@dataclass(frozen=True)
class Job:
    """What is passed over.

    name      what the progress bar says
    count     pictures in all, numbered from 0
    kept      the numbers, ascending, whose features are kept
    identity  everything that the result depends on, as JSON values: a saved part of another job is not continued
    """

    name: str
    count: int
    kept: np.ndarray
    identity: dict[str, Any]


@dataclass
class Collected:
    """The moments of all pictures, and on rank 0 the kept features [K, D], on the CPU; `seconds` this process worked,
    over all interrupted attempts."""

    moments: FeatureAccumulator = field(default_factory=FeatureAccumulator)
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    seconds: float = 0.0

    def statistics(self) -> FeatureStatistics:
        return self.moments.statistics()


def collect(
    pictures: Callable[[range], Tensor],
    features_of: Callable[[Tensor], Tensor],
    job: Job,
    folder: Path,
    ranks: Ranks,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Pass `pictures(numbers)` through `features_of`, in batches; what is unfinished lies under `folder`. `progress` is
    that of `counting` over several passes (None: this one shows its own).

    Every rank calls it alike, and gets the moments of all; only rank 0 gets the kept features. `RanksError` if their
    jobs differ.
    """
    ranks.require_equal(job.name, job.identity | {"count": job.count, "kept": job.kept.tobytes()})
    if job.count < max(ranks.count, 2):
        raise ValueError(f"{job.name}: {job.count} pictures are too few for {ranks.count} process(es).")
    share = share_of(job.count, ranks)
    path = folder / f"rank_{ranks.rank}_of_{ranks.count}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    moments, kept, begin, seconds = _load(path, job, share)
    began = saved = time.monotonic()
    with nullcontext(progress) if progress is not None else counting(job.name, len(share), ranks.main) as done:
        done(begin - share.start, 0)
        for start in range(begin, share.stop, batch_size):
            numbers = range(start, min(start + batch_size, share.stop))
            features = features_of(pictures(numbers))
            moments.add(features)
            first, last = np.searchsorted(job.kept, (numbers.start, numbers.stop))
            if last > first:
                kept.append(features[torch.from_numpy(job.kept[first:last] - start).to(features.device)].cpu())
            done(len(numbers), len(numbers))
            if time.monotonic() - saved > SAVE_SECONDS and numbers.stop < share.stop:
                _save(path, job, moments, kept, numbers.stop, seconds + time.monotonic() - began)
                saved = time.monotonic()
    dimension = len(moments.mean)
    mine = torch.cat(kept) if kept else torch.empty(0, dimension)
    together = _all_moments(moments, ranks), _all_features(mine, ranks)
    return Collected(*together, seconds + time.monotonic() - began)


def share_of(count: int, ranks: Ranks) -> range:
    """The numbers that this process passes over."""
    return range(count * ranks.rank // ranks.count, count * (ranks.rank + 1) // ranks.count)


def _all_moments(moments: FeatureAccumulator, ranks: Ranks) -> FeatureAccumulator:
    """The moments of all ranks, by two sums: of counts and means, then of the scatter about the common mean."""
    if ranks.control is None:
        return moments
    mean, scatter = moments.mean.cpu(), moments.scatter.cpu()
    sums = torch.cat([mean * moments.count, mean.new_tensor([moments.count])])
    with ranks.together():
        dist.all_reduce(sums, group=ranks.control)
        total = int(sums[-1])
        common = sums[:-1] / total
        scatter = scatter + moments.count * torch.outer(mean - common, mean - common)
        dist.all_reduce(scatter, group=ranks.control)
    result = FeatureAccumulator()
    result.merge(total, common.to(moments.mean.device), scatter.to(moments.mean.device))
    return result


def _all_features(mine: Tensor, ranks: Ranks) -> Tensor:
    """The kept features of all ranks in order, on rank 0; nothing on the others."""
    if ranks.control is None:
        return mine
    parts: list[Any] | None = [None] * ranks.count if ranks.main else None
    with ranks.together():
        dist.gather_object(mine.numpy(), parts, group=ranks.control, group_dst=0)
    return torch.cat([torch.from_numpy(part) for part in parts]) if parts is not None else mine[:0]


def _save(path: Path, job: Job, moments: FeatureAccumulator, kept: list[Tensor], stop: int, seconds: float) -> None:
    tensors = {"mean": moments.mean.cpu(), "scatter": moments.scatter.cpu()}
    if kept:
        kept[:] = [torch.cat(kept)]
        tensors["features"] = kept[0]
    told = {"job": json.dumps(job.identity, sort_keys=True), "next": str(stop), "count": str(moments.count)}
    told["seconds"] = str(seconds)
    with replacing(path) as file:
        file.write(to_safetensors(tensors, told))


def _load(path: Path, job: Job, share: range) -> tuple[FeatureAccumulator, list[Tensor], int, float]:
    """What was saved of this very job by as many processes and the seconds it took, or a fresh start."""
    moments, kept = FeatureAccumulator(), []
    with suppress(OSError, SafetensorError, KeyError, ValueError), safe_open(path, "pt") as file:
        told = file.metadata() or {}
        position = int(told["next"])
        if told["job"] == json.dumps(job.identity, sort_keys=True) and position in share:
            mean, scatter = file.get_tensor("mean"), file.get_tensor("scatter")
            if "features" in file.keys():  # noqa: SIM118 (not a dict)
                kept.append(file.get_tensor("features"))
            moments.merge(int(told["count"]), mean, scatter)
            return moments, kept, position, float(told["seconds"])
    return FeatureAccumulator(), [], share.start, 0.0


def hold(folder: Path, ranks: Ranks, stack: ExitStack) -> None:
    """Make a folder and keep other commands out of it until `stack` ends; `ValueError` on every rank if another one
    works there."""
    busy = ValueError(f"{folder}: another process works there; wait for it, or choose another output.")

    def make_and_lock() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(folder, busy))

    ranks.on_main(make_and_lock)


@contextmanager
def removed_when_done(folder: Path, ranks: Ranks) -> Iterator[Path]:
    """A folder for unfinished passes, held by this command alone; emptied by rank 0 when the block ends well, and
    removed if there is nothing in it."""
    with ExitStack() as stack:
        hold(folder, ranks, stack)
        try:
            yield folder
            if ranks.main:
                for path in folder.glob("rank_*_of_*.safetensors"):
                    path.unlink(missing_ok=True)
        finally:
            if ranks.main:
                with suppress(OSError):  # not empty
                    folder.rmdir()
