"""The kernel distance of two sets of features ("KID", arXiv 1801.01401), by torchmetrics."""

import warnings

import torch
from torch import Tensor, nn

SUBSETS, SUBSET_SIZE = 100, 1000  # as published: 100 draws of 1000 features, cubic kernel (x.y / D + 1)^3


def require_torchmetrics() -> None:
    """Raise `ValueError` that names the extra, before any work, where torchmetrics is missing."""
    try:
        import torchmetrics.image.kid  # noqa: F401
    except ImportError as error:
        raise ValueError("the kernel distance needs torchmetrics: pip install 'tvmatch[eval]'") from error


def subset_size(real: int, generated: int) -> int:
    """Features of each kind in a subset, of so many."""
    return min(SUBSET_SIZE, real, generated)


@torch.no_grad()
def kernel_distance(real: Tensor, generated: Tensor, seed: int = 0) -> tuple[float, float]:
    """Mean and deviation over random subsets of the unbiased squared MMD; features [N, D] and [M, D] on any device.

    With fewer than 1000 features of a kind, the subsets are as large as the smaller kind: the deviation is then that of
    the larger kind's draws alone, and zero for equal numbers. Raises `ValueError` for NaN, infinity, or one feature.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = subset_size(len(real), len(generated))
    if not (bool(real.isfinite().all()) and bool(generated.isfinite().all())):
        raise ValueError("features must be finite, but they hold NaN or infinity.")
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 features of each kind, got {size}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        # of this process alone: the features are all here, and the other ranks do not come
        metric = KernelInceptionDistance(
            feature=nn.Identity(), subsets=SUBSETS, subset_size=size, sync_on_compute=False
        )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # its subsets come from the global stream of the CPU
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)
