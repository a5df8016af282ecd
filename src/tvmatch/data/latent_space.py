"""What a model of latents must know to draw pictures: which codec, and how its latents were normalised."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvmatch.data.codecs import Codec, CodecError, open_codec
from tvmatch.data.source import to_pictures

REMEDY = "--codec gives its folder or name, if it lies elsewhere now"


@dataclass(frozen=True)
class LatentSpace:
    """Latents of one codec, normalised per channel: what the network sees is (latent - mean) / deviation.

    codec       the codec's name as given to `open_codec`
    codec_hash  of its configuration and weights
    shape       (C, h, w) of one latent
    image_size  pixels a side of the pictures that were encoded
    mean        of each channel, C numbers
    deviation   of each channel, posterior noise included, C positive numbers
    """

    codec: str
    codec_hash: str
    shape: tuple[int, int, int]
    image_size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) != self.shape[0]:
                raise ValueError(f"{name} needs one number a channel, {self.shape[0]}; got {len(getattr(self, name))}.")
        if not all(0 < value < float("inf") for value in self.deviation):
            raise ValueError(f"the deviation of each channel must be positive and finite, got {self.deviation}.")
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"the mean of each channel must be finite, got {self.mean}.")

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] of the codec to what the network sees."""
        mean, deviation = self._per_channel(latents)
        return (latents - mean) / deviation

    def denormalise(self, x: Tensor) -> Tensor:
        """What the network draws, [B, C, h, w], to latents of the codec."""
        mean, deviation = self._per_channel(x)
        return x * deviation + mean

    def _per_channel(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(like.new_tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.deviation))

    def open_codec(self, spec: str | None = None, remedy: str = REMEDY) -> Codec:
        """The codec of these latents, from where it was or from `spec`; `CodecError`, with a remedy, if it is not there
        or its hash is another."""
        try:
            return open_codec(spec or self.codec, self.codec_hash)
        except CodecError as error:
            raise CodecError(f"{error} ({remedy})") from error

    def to_header(self) -> dict[str, Any]:
        """As JSON values, for a checkpoint's header or a manifest."""
        return asdict(self)

    @classmethod
    def from_header(cls, values: dict[str, Any]) -> "LatentSpace":
        """The reverse of `to_header`; `ValueError` for values that do not fit."""
        try:
            tuples = {name: tuple(values[name]) for name in ("shape", "mean", "deviation")}
            return cls(**{**values, **tuples})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the description of a latent space: {error}") from error


@torch.no_grad()
def decode_latents(space: LatentSpace, codec: Codec, x: Tensor, batch_size: int = 16) -> Tensor:
    """What a network drew, float [N, C, h, w] on any device, to pictures in [-1, 1], float32 [N, 3, H, W] on the CPU.

    The codec stays on its own device. Raises `ValueError` on NaN or infinity.
    """
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        raise ValueError(f"{bad} of {len(x)} samples hold NaN or infinity; they cannot be shown as pictures.")
    device = _device_of(codec)
    parts = [codec.decode(space.denormalise(part.to(device).float())).float().cpu() for part in x.split(batch_size)]
    return torch.cat(parts)


def picture_maker(
    space: LatentSpace | None, device: torch.device | str, codec: str | None = None, remedy: str = REMEDY
) -> Callable[[Tensor], np.ndarray]:
    """A function from what a network draws, [N, C, h, w], to pictures uint8 [N, H, W, C]; for latents the codec is
    opened now, on `device`, from `codec` if it has moved. Raises `CodecError`, which ends with `remedy`."""
    if space is None:
        return lambda x: to_pictures(x).cpu().numpy()
    opened = space.open_codec(codec, remedy).to(device)
    return lambda x: to_pictures(decode_latents(space, opened, x)).numpy()


def _device_of(codec: Codec) -> torch.device:
    network = getattr(codec, "network", None)
    return torch.device("cpu") if network is None else next(network.parameters()).device
