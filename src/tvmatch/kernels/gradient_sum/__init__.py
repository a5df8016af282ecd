"""Gradients of one weight from several products, added up in one pass."""

from .op import gradient_sum

__all__ = ["gradient_sum"]
