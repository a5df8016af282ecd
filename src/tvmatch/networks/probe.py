"""A network's tangents against finite differences: the check before training starts.

Forward-mode AD can lose a tangent without a word, differently in eager and compiled code. So the very modules that are
about to train are asked once, through the very path that training takes.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tvmatch.flow_map import FlowMap
from tvmatch.networks.base import Tangents
from tvmatch.networks.duals import TangentError

STEP, TOLERANCE = 2e-2, 0.1  # in float32 curvature and rounding errors of a central difference stay under a percent
STEP_16, TOLERANCE_16 = 0.2, 0.5  # bfloat16 resolves differences of outputs to some tenths; a lost tangent is off by 1


def verify_tangents(flow: FlowMap, batch: int = 4, every: int = 1) -> float:
    """Compare dF/ds with a central difference; return the relative error, raise `TangentError` if it is large.

    Asked with the batch sizes and the gradient mode of training, so that what was compiled for one serves the other:
    `batch` samples for values, every `every`-th of them for the derivative.
    Parameters that are zero (a fresh network's modulation and output layers, which would make every derivative zero)
    are replaced by random numbers for the length of the check and restored bit for bit. In 16 bits the derivative of
    trained weights may be smaller than what rounding does to a difference (after flow matching alone F hardly depends
    on s); what fails with them is therefore asked once more with random weights.
    """
    network = flow.network
    rounded = any(getattr(layer, "compute_dtype", None) in (torch.bfloat16, torch.float16) for layer in flow.modules())
    step, tolerance = (STEP_16, TOLERANCE_16) if rounded else (STEP, TOLERANCE)
    slope, difference, error = _compare(flow, batch, every, step, all_weights=False)
    if rounded and not error <= tolerance:
        slope, difference, error = _compare(flow, batch, every, step, all_weights=True)
    if not error <= tolerance:
        raise TangentError(
            f"{type(network).__name__}: dF/ds by forward mode differs from finite differences by {error:.1%} "
            f"(norms {slope:.3g} and {difference:.3g}). Its tangents cannot be trusted: "
            "some layer loses or changes them (a custom operator, a compiled autograd.Function), or the network does "
            "not depend on s."
        )
    return error


def _compare(flow: FlowMap, batch: int, every: int, step: float, all_weights: bool) -> tuple[float, float, float]:
    """Norms of dF/ds by forward mode and by a central difference, and their relative distance."""
    network = flow.network
    device, dtype = next(network.parameters()).device, next(network.parameters()).dtype
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn((batch, *network.data_shape), generator=generator, device=device, dtype=dtype)
    t = torch.linspace(0.6, 1.0, batch, device=device, dtype=dtype)
    s = t * 0.5
    label = torch.arange(batch, device=device) % (network.num_classes + 1) - 1
    w = torch.linspace(1.0, 2.0, batch, device=device, dtype=dtype)
    seen = flow.tangent_seen
    with _randomised(network, generator, all_weights):
        some = [value[::every] for value in (x, t, s, label, w)]
        slope = flow.network_derivative(*some, Tangents(s=torch.ones_like(some[2])))[1].detach()
        ahead, behind = (network(x, t, s + h, label, w).detach()[::every] for h in (step, -step))
    flow.tangent_seen = seen
    difference = (ahead - behind) / (2 * step)
    return float(slope.norm()), float(difference.norm()), float((slope - difference).norm() / difference.norm())


@contextlib.contextmanager
def _randomised(network: nn.Module, generator: torch.Generator, all_weights: bool) -> Iterator[None]:
    """Random numbers in every parameter that is zero, or also in every matrix; the old ones at the end."""
    replaced: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter in network.parameters():
                zero = not bool(parameter.any())
                if zero or (all_weights and parameter.dim() > 1):
                    replaced.append((parameter, parameter.clone()))
                    parameter.normal_(std=0.1 if zero else parameter[0].numel() ** -0.5, generator=generator)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in replaced:
                parameter.copy_(value)
