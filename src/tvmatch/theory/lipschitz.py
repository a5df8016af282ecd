"""Lipschitz constants of networks: the largest singular value of the Jacobian at given points, by power iteration."""

from collections.abc import Callable

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.interpolant import per_sample
from tvmatch.networks.base import Tangents


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def largest_singular_value(
    push: Callable[[Tensor], Tensor],
    pull: Callable[[Tensor], Tensor],
    like: Tensor,
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The largest singular value of each sample's Jacobian J, [B], by power iteration on J^T J.

    push: d -> J d (a Jacobian-vector product); pull: g -> J^T g; `like` [B, ...] has the shape of d. The result never
    exceeds the singular value, and grows towards it with `iterations`.
    """
    if iterations < 1:
        raise ValueError(f"power iteration needs at least 1 iteration, got {iterations}.")
    direction = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    direction = direction / per_sample(_norm(direction), direction)
    for _ in range(iterations - 1):
        direction = pull(push(direction))
        length = per_sample(_norm(direction), direction)
        direction = direction / torch.where(length > 0, length, torch.ones_like(length))
    return _norm(push(direction))


def velocity_lipschitz(
    flow: FlowMap,
    x: Tensor,
    t: Tensor,
    label: Tensor,
    w: Tensor,
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """|du/dx| of the velocity u(x, t) at each point, [B]: their largest is the local Lipschitz constant of u(., t) over
    these points (a lower estimate of the constant over the whole space). Arguments as for `FlowMap.velocity`."""

    def push(direction: Tensor) -> Tensor:
        with torch.no_grad():
            slope = flow.network_derivative(x, t, t, label, w, Tangents(x=direction))[1]
        return per_sample(w, x) * slope if flow.scaled else slope

    def pull(gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            return torch.autograd.grad(flow.velocity(point, t, label, w), point, gradient)[0]

    return largest_singular_value(push, pull, x.detach(), iterations, generator)
