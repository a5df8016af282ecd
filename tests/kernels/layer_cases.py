"""Shared by the tests of the fused layers."""

from torch import Tensor


def relative_errors(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    return [float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(ours, exact, strict=True)]
