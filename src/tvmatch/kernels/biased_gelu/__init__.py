"""GELU of a matrix product and its bias, with tangents; the gradient of the bias is summed up on the way back."""

from .op import applies, biased_gelu

__all__ = ["applies", "biased_gelu"]
