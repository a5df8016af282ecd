"""Attention of short sequences straight from the packed projection, with tangents, in one kernel each way."""

from .op import applies, attention_of_qkv

__all__ = ["applies", "attention_of_qkv"]
