"""Gated residual, RMS normalisation and modulation in one pass over the residual stream, with tangents."""

from .op import add_norm_modulate, applies

__all__ = ["add_norm_modulate", "applies"]
