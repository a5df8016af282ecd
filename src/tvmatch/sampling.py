"""Few-step sampling with a flow map, and for comparison Euler steps along its velocity (DESIGN section 1) and the
sampling of consistency models."""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tvmatch.checks import check_guidance, check_labels
from tvmatch.flow_map import FlowMap
from tvmatch.interpolant import interpolate, per_sample
from tvmatch.times import check_grid, uniform_grid

Method = Literal["jump", "euler", "consistency"]


@torch.no_grad()
def sample(
    flow: FlowMap,
    noise: Tensor,
    label: Tensor | int = -1,
    w: Tensor | float = 1.0,
    steps: int = 1,
    times: Sequence[float] | None = None,
) -> Tensor:
    """Draw samples: x <- x + f(x, t_k, t_(k+1), class, w), one network call (NFE) a step.

    noise [B, ...] standard normal; label an integer or [B] (-1: no class); w a number or [B], above 0; `steps` equal
    steps from 1 to 0, or your own grid `times` from 1 down to 0. Guidance needs no second call. It leads towards a
    class: no objective here teaches w other than 1 without one.
    """
    label, w = _for_batch(flow, noise, label, w)
    return _walk(noise, steps, times, lambda x, t, s: flow.jump(x, t, s, label, w))


@torch.no_grad()
def euler(
    flow: FlowMap,
    noise: Tensor,
    label: Tensor | int = -1,
    w: Tensor | float = 1.0,
    steps: int = 32,
    times: Sequence[float] | None = None,
) -> Tensor:
    """Draw samples by Euler steps along the velocity: x <- x + (t_(k+1) - t_k) u(x, t_k); arguments as for `sample`."""
    label, w = _for_batch(flow, noise, label, w)
    return _walk(noise, steps, times, lambda x, t, s: x + per_sample(s - t, x) * flow.velocity(x, t, label, w))


@torch.no_grad()
def consistency(
    flow: FlowMap,
    noise: Tensor,
    label: Tensor | int = -1,
    w: Tensor | float = 1.0,
    steps: int = 1,
    times: Sequence[float] | None = None,
    fresh: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Draw samples from a map that knows jumps to s = 0 only: x_0 = x_t + f(x_t, t, 0), then x_s = (1 - s) x_0 + s e
    with new noise e (arXiv 2303.01469, algorithm 1). `fresh(k)` gives the noise after call k = 1, 2, ... (None: drawn
    from torch's global stream); the other arguments as for `sample`."""
    label, w = _for_batch(flow, noise, label, w)
    calls = itertools.count(1)

    def step(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x0, number = flow.jump(x, t, torch.zeros_like(s), label, w), next(calls)
        if not bool(s.any()):
            return x0
        return interpolate(x0, torch.randn_like(x0) if fresh is None else fresh(number), s)

    return _walk(noise, steps, times, step)


@torch.no_grad()
def draw(
    flow: FlowMap,
    label: Tensor,
    w: float,
    steps: int,
    *,
    seed: int = 0,
    method: Method = "jump",
    batch_size: int = 256,
) -> Tensor:
    """One sample for each class in `label` [N], in batches, on the flow map's device; returned on the CPU.

    Sample i depends on `seed` and i only, not on the batches.
    """
    if method not in METHODS:
        raise ValueError(f"method must be {' or '.join(METHODS)}, got {method!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if len(label) == 0:
        raise ValueError("label is empty: give a class (or -1) for each sample to draw.")
    weight = next(flow.parameters())
    parts = []
    for start in range(0, len(label), batch_size):
        part = label[start : start + batch_size]
        numbered = functools.partial(seeded_noise, seed, range(start, start + len(part)), flow.network.data_shape)
        fresh = {"fresh": lambda call, of=numbered: of(call).to(weight)} if method == "consistency" else {}
        parts.append(METHODS[method](flow, numbered().to(weight), part, w, steps, **fresh).cpu())
    return torch.cat(parts)


def seeded_noise(seed: int, indices: Sequence[int], shape: Sequence[int], call: int = 0) -> Tensor:
    """Standard normal noise [len(indices), *shape], float32 on the CPU: sample i is the same in every batch, on every
    rank and for every device. Counter-based (Philox, keyed by seed and index): torch's CPU generator would keep only
    32 bits of a seed. Samplers that put noise in again ask for it by the number of the `call`."""
    seed = operator.index(seed)
    if not 0 <= seed < 2**63:  # from there on numpy would round it
        raise ValueError(f"the seed must be from 0 to 2^63 - 1, got {seed}.")
    rows = [
        np.random.Generator(np.random.Philox(counter=(0, 0, 0, call), key=(seed, int(index)))).standard_normal(
            tuple(shape), np.float32
        )
        for index in indices
    ]
    return torch.from_numpy(np.stack(rows))


def _for_batch(flow: FlowMap, noise: Tensor, label: Tensor | int, w: Tensor | float) -> tuple[Tensor, Tensor]:
    """`label` and `w` as tensors [B], checked before the first network call, on a GPU too."""
    batch, device = len(noise), noise.device
    label = torch.as_tensor(label)
    w = torch.as_tensor(w, dtype=noise.dtype)
    label = label.expand(batch) if label.dim() == 0 else label
    w = w.expand(batch) if w.dim() == 0 else w
    check_labels(label.cpu(), flow.network.num_classes, batch)
    check_guidance(w.cpu(), batch)
    return label.to(device), w.to(device)


def _walk(
    x: Tensor, steps: int, times: Sequence[float] | None, step: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    grid = uniform_grid(steps) if times is None else check_grid(list(times))
    for t, s in itertools.pairwise(grid):
        x = step(x, x.new_full((len(x),), t), x.new_full((len(x),), s))
    return x


METHODS = {"jump": sample, "euler": euler, "consistency": consistency}


def method_of(objective: str) -> Method:
    """How what this objective has learned is sampled: by jumps, by Euler steps where it is only a velocity, or with
    fresh noise where it is jumps to s = 0 only."""
    return {"flow-matching": "euler", "consistency-training": "consistency"}.get(objective, "jump")


def untaught(objective: str, method: Method, steps: int) -> str | None:
    """What must be said of sampling what this objective has learned by that method, if it asks for what was never
    taught: jumps of a velocity, or jumps to other times than 0 and velocities of what jumps to 0 only."""
    if objective == "flow-matching" and method != "euler":
        return f"--method {method} takes jumps, and flow-matching teaches velocities only: leave it out, for euler."
    if objective == "consistency-training" and (method == "euler" or (method == "jump" and steps > 1)):
        return (
            f"--method {method} in {steps} calls asks for more than jumps to the end, which is all that "
            "consistency-training teaches: leave it out, for consistency."
        )
    return None
