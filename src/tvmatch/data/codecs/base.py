"""What a codec is: pictures to latents and back, and a hash that says which one it was."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class CodecError(ValueError):
    """A codec that cannot be opened, or is not the one that was asked for; the message names the remedy."""


@dataclass(frozen=True)
class Posterior:
    """The latents of pictures: a normal distribution for each element.

    mean       float32 [B, C, h, w]
    deviation  float32 [B, C, h, w], or None for a codec that gives one point
    """

    mean: Tensor
    deviation: Tensor | None


class Codec(Protocol):
    """Pictures float32 [B, 3, H, W] in [-1, 1] to latents [B, channels, H / factor, W / factor] and back.

    spec           the name under which it is opened again
    hash           SHA-256 of its configuration and weights
    channels       of the latents
    factor         pixels a side that become one latent cell
    has_deviation  whether `encode` gives a deviation
    """

    spec: str
    hash: str
    channels: int
    factor: int
    has_deviation: bool

    def encode(self, x: Tensor) -> Posterior:
        """The latents of pictures whose sides are multiples of `factor`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of latents; values may leave [-1, 1] a little."""
        ...

    def to(self, device: torch.device | str) -> "Codec":
        """The codec itself, moved."""
        ...


def weights_hash(kind: str, configuration: dict[str, Any], module: nn.Module) -> str:
    """SHA-256 of the class, its configuration (JSON) and every tensor, in the order of their names."""
    digest = hashlib.sha256(json.dumps([kind, configuration], sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().float().cpu().contiguous()
        digest.update(repr((name, tuple(value.shape))).encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def check_pictures(x: Tensor, factor: int) -> None:
    """Raise unless `x` is a batch of RGB pictures that the codec can divide into cells."""
    if x.dim() != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise ValueError(f"a codec takes floating-point pictures [B, 3, H, W], got {x.dtype} {list(x.shape)}.")
    if x.shape[2] % factor or x.shape[3] % factor:
        raise CodecError(
            f"pictures of {x.shape[3]} x {x.shape[2]} pixels: the codec needs multiples of {factor}; "
            f"choose for example --image-size {max(factor, x.shape[2] // factor * factor)}."
        )
