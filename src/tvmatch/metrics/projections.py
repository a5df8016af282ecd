"""The sliced Wasserstein-2 distance of two sets of features."""

import math

import torch
from torch import Tensor

DIRECTIONS = 1000
TOGETHER = 100  # directions sorted at once


@torch.no_grad()
def sliced_wasserstein(first: Tensor, second: Tensor, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """The root of the mean, over random directions, of the squared W2 distance of projections (Bonneel et al., 2015).

    Features [N, D] of equal number, in float64 on their device. In one dimension W2 pairs the sorted numbers.
    """
    if first.shape != second.shape or first.dim() != 2 or not len(first):
        raise ValueError(f"two sets [N, D] of equal shape are needed, got {list(first.shape)}, {list(second.shape)}.")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}.")
    if not (bool(first.isfinite().all()) and bool(second.isfinite().all())):
        raise ValueError("features must be finite, but they hold NaN or infinity.")
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn((first.shape[1], directions), generator=generator, dtype=torch.float64)
    axes = (axes / axes.norm(dim=0)).to(first.device)
    squares = [
        ((first.double() @ part).sort(0).values - (second.double() @ part).sort(0).values).square().mean(0)
        for part in axes.split(TOGETHER, dim=1)
    ]
    return math.sqrt(float(torch.cat(squares).mean()))
