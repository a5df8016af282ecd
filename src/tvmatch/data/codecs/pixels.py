"""The codec that does nothing: latents are the pixels."""

import hashlib

import torch
from torch import Tensor

from tvmatch.data.codecs.base import Posterior, check_pictures


class PixelCodec:
    """Pictures as they are: 3 channels, one cell a pixel."""

    spec = "pixels"
    hash = hashlib.sha256(b"pixels").hexdigest()
    channels, factor, has_deviation = 3, 1, False

    def encode(self, x: Tensor) -> Posterior:
        check_pictures(x, self.factor)
        return Posterior(x.float(), None)

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def to(self, device: torch.device | str) -> "PixelCodec":
        return self
