"""RMS normalisation of the vectors that modulate a block, with tangents, each in memory of its own."""

from .op import applies, normalised_chunks

__all__ = ["applies", "normalised_chunks"]
