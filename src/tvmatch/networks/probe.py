"""A network's tangents against finite differences: the check before training starts.

Forward-mode AD can lose a tangent without a word, differently in eager and compiled code. So the very modules that are
about to train are asked once, through the very path that training takes.
"""

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.networks.base import Tangents
from tvmatch.networks.duals import TangentError

STEP = 2e-2  # in float32 both the curvature and the rounding error of a central difference stay under a percent


@torch.no_grad()
def verify_tangents(flow: FlowMap, batch: int = 4, tolerance: float = 0.1) -> float:
    """Compare dF/ds with a central difference; return the relative error, raise `TangentError` above `tolerance`.

    Parameters that are zero (a fresh network's modulation and output layers, which would make every derivative zero)
    are replaced by random numbers for the length of the check and restored bit for bit.
    """
    network = flow.network
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    replaced: list[tuple[Tensor, Tensor]] = []
    seen = flow._tangent_seen
    try:
        for parameter in network.parameters():
            if not bool(parameter.any()):
                replaced.append((parameter, parameter.clone()))
                parameter.normal_(std=0.1, generator=generator)
        dtype = next(network.parameters()).dtype
        x = torch.randn((batch, *network.data_shape), generator=generator, device=device, dtype=dtype)
        t = torch.linspace(0.6, 1.0, batch, device=device, dtype=dtype)
        s = t * 0.5
        label = torch.arange(batch, device=device) % (network.num_classes + 1) - 1
        w = torch.linspace(1.0, 2.0, batch, device=device, dtype=dtype)
        _, slope = flow.network_derivative(x, t, s, label, w, Tangents(s=torch.ones_like(s)))
        difference = (network(x, t, s + STEP, label, w) - network(x, t, s - STEP, label, w)) / (2 * STEP)
    finally:
        for parameter, value in replaced:
            parameter.copy_(value)
        flow._tangent_seen = seen
    error = float((slope - difference).norm() / difference.norm())
    if not error <= tolerance:
        raise TangentError(
            f"{type(network).__name__}: dF/ds by forward mode differs from finite differences by {error:.1%} "
            f"(norms {float(slope.norm()):.3g} and {float(difference.norm()):.3g}). Its tangents cannot be trusted: "
            "some layer loses or changes them (a custom operator, a compiled autograd.Function), or the network does "
            "not depend on s."
        )
    return error
