"""RMS normalisation of queries and keys, straight from and to the packed qkv projection, with tangents."""

from .op import applies, dual_attention_of_qkv, normalised_heads

__all__ = ["applies", "dual_attention_of_qkv", "normalised_heads"]
