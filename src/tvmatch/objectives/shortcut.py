"""Shortcut models (arXiv 2410.12557): a jump of length 2d is two jumps of length d.

    x_m    = x_t - d A'(x_t, t, m)                    m = t - d, s = t - 2d
    target = 1/2 [ A'(x_t, t, m) + A'(x_m, m, s) ]    A' of the EMA target
    loss   = 1/w^2 | A(x_t, t, s) - sg[target] |^2

Lengths 2d are 1, 1/2, ..., 1/64, and t a multiple of the length. The shortest half, d = 1/128, is asked as an Euler
step, A'(., t, t). Three quarters of the samples have s = t, t uniform and v as their target (flow matching). The 1/w^2
is this library's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import GuidanceScheme
from tvmatch.interpolant import per_sample
from tvmatch.objectives.few_step import Draws, FewStepObjective, as_data, weighted_square
from tvmatch.times import JumpScheme, Uniform

SHORTEST = 1 / 128  # halves of this length are Euler steps


@dataclass(frozen=True)
class DyadicJumps:
    """Jumps of length 2^-k, k uniform in 0 .. levels - 1, from a multiple of their length."""

    levels: int = 7

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        level, place = torch.rand(2, batch, generator=generator, device=generator.device)
        count = torch.exp2((level * self.levels).floor().clamp(max=self.levels - 1))
        end = (place * count).floor().clamp(max=count - 1)
        return (end + 1) / count, end / count


class Shortcut(FewStepObjective):
    """Its jumps are dyadic; another scheme of jumps is split in the middle all the same."""

    has_target = True
    default_equal = 0.75

    def __init__(
        self,
        flow: FlowMap,
        jumps: JumpScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        equal: float | None = None,
    ) -> None:
        super().__init__(flow, jumps or DyadicJumps(), guidance, label_dropout, equal, times=Uniform())

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        with torch.no_grad():
            middle = (t + s) / 2
            short = t - middle <= SHORTEST * 1.001
            first = self.target.average_velocity(x_t, t, torch.where(short, t, middle), label, w)
            x_m = x_t - per_sample(t - middle, x_t) * first
            second = self.target.average_velocity(as_data(x_m), middle, torch.where(short, middle, s), label, w)
            target = torch.where(per_sample(s < t, v), (first + second) / 2, v)
        return weighted_square(self.flow.average_velocity(x_t, t, s, label, w) - target, w)
