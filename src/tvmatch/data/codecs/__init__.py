"""Codecs: between pictures and the data that a network sees, behind one interface."""

from tvmatch.data.codecs.base import Codec, CodecError, Posterior
from tvmatch.data.codecs.opening import open_codec

__all__ = ["Codec", "CodecError", "Posterior", "open_codec"]
