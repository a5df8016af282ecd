"""Guidance as an input of the network: how w is drawn, when the class is dropped, and the guided target (paper, 4.3).

w = 1 is no guidance. A guided network has learned velocity w v + (1 - w) u(x, t, null, 1) for class c, so that
sampling needs no second call.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tvmatch.interpolant import per_sample

SMALLEST_INVERSE = 1e-2  # 1/w uniform in (0, 1) would otherwise ask for an infinite w


class GuidanceScheme(Protocol):
    """Draws guidance scales w [B]; `always_one` says that no draw is ever guided."""

    @property
    def always_one(self) -> bool: ...

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor: ...


def _require_positive(w: float) -> None:
    if not 0 < w < float("inf"):
        raise ValueError(f"the guidance scale w must be positive and finite (1 is no guidance), got {w:g}.")


@dataclass(frozen=True)
class FixedGuidance:
    """The same w for every sample."""

    w: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self.w)

    @property
    def always_one(self) -> bool:
        return self.w == 1

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.full((batch,), float(self.w), device=generator.device)


@dataclass(frozen=True)
class UniformGuidance:
    """w uniform in [low, high]."""

    low: float = 1.0
    high: float = 2.0

    def __post_init__(self) -> None:
        _require_positive(self.low)
        _require_positive(self.high)
        if self.low >= self.high:
            raise ValueError(f"uniform guidance needs low < high, got {self.low} and {self.high}.")

    @property
    def always_one(self) -> bool:
        return False

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(batch, generator=generator, device=generator.device)
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class UniformInverseGuidance:
    """1/w uniform in (0, 1): every w above 1, large ones seldom; w is capped at 1 / SMALLEST_INVERSE = 100."""

    @property
    def always_one(self) -> bool:
        return False

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(batch, generator=generator, device=generator.device)
        return 1 / u.clamp(min=SMALLEST_INVERSE)


def parse_guidance(text: str) -> FixedGuidance | UniformGuidance | UniformInverseGuidance:
    """`2` -> fixed, `1:3` -> uniform in [1, 3], `inverse` -> 1/w uniform in (0, 1)."""
    if text == "inverse":
        return UniformInverseGuidance()
    low, colon, high = text.partition(":")
    try:
        return UniformGuidance(float(low), float(high)) if colon else FixedGuidance(float(low))
    except ValueError as error:
        raise ValueError(f"guidance {text!r}: give a scale (2), a range (1:3) or `inverse`. {error}") from error


def check_scale(w: float, trained_with: str, num_classes: int) -> str | None:
    """`ValueError` for a guidance scale that cannot work; a sentence of warning for one that was not seen in training,
    where scales were drawn as `trained_with` says."""
    _require_positive(w)
    if num_classes == 0:
        if w != 1:
            raise ValueError(f"this run was trained without classes, so w must be 1, got {w:g}.")
        return None
    match parse_guidance(trained_with):
        case FixedGuidance(trained):
            seen = w == trained
        case UniformGuidance(low, high):
            seen = low <= w <= high
        case _:
            seen = 1 <= w <= 1 / SMALLEST_INVERSE
    return None if seen else f"w={w:g} was not seen in training (--guidance {trained_with}); expect poor samples."


def drop_labels(label: Tensor, w: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """With `probability` a sample's class becomes null (-1); every sample without a class gets w = 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"label_dropout is the share of samples that lose their class, in [0, 1], got {probability}.")
    dropped = torch.rand(label.shape, generator=generator, device=label.device) < probability
    label = torch.where(dropped, torch.full_like(label, -1), label)
    return label, torch.where(label < 0, torch.ones_like(w), w)


def guided_target(velocity: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """w v + (1 - w) u(x_r, r, null, 1): the velocity that a guided network learns."""
    w = per_sample(w, velocity)
    return w * velocity + (1 - w) * unconditional
