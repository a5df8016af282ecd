"""The Wasserstein-2 distance: of Gaussians in closed form, of samples by optimal assignment."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tvmatch.theory.gaussian import Gaussian


def w2_gaussians(p: Gaussian, q: Gaussian) -> float:
    """W2(p, q) with W2^2 = |m_p - m_q|^2 + tr(P + Q - 2 (P^(1/2) Q P^(1/2))^(1/2)) (Dowson and Landau 1982)."""
    if p.mean.shape != q.mean.shape:
        raise ValueError(f"the Gaussians have different dimensions: {len(p.mean)} and {len(q.mean)}.")
    root = p.axes @ torch.diag(p.variances.sqrt()) @ p.axes.T
    cross = torch.linalg.eigvalsh(root @ q.covariance @ root).clamp(min=0.0).sqrt().sum()
    square = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * cross
    return float(square.clamp(min=0.0).sqrt())


def w2_samples(x: Tensor, y: Tensor) -> float:
    """W2 between the empirical distributions of x and y, [N, ...] each, exact: the best pairing (N^3 at worst).

    Two samples of one distribution are not at distance zero; compare with that figure, and use equal N throughout.
    """
    if x.shape != y.shape or x.dim() < 2 or not x.numel():
        raise ValueError(
            f"optimal assignment needs samples [N, ...] of equal shape, got {list(x.shape)} and {list(y.shape)}."
        )
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise ValueError("samples must be finite, but they hold NaN or infinity.")
    # differences, not the inner-product formula: that one loses half the digits of nearby points
    cost = torch.cdist(
        x.detach().double().flatten(1),
        y.detach().double().flatten(1),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    return float(cost[torch.from_numpy(rows), torch.from_numpy(columns)].mean().sqrt())
