"""Autoencoders of the diffusers library: `AutoencoderKL` (SD-VAE and others) and `AutoencoderTiny`."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tvmatch.data.codecs.base import CodecError, Posterior, check_pictures, weights_hash

ClassName = Literal["AutoencoderKL", "AutoencoderTiny"]


class DiffusersCodec:
    """An autoencoder from a hub name or a folder with `config.json` and safetensors.

    Its own scaling factor is left aside: latents are normalised by the mean and deviation that were measured.
    """

    def __init__(self, spec: str, class_name: ClassName, name: str, subfolder: str | None) -> None:
        diffusers = _diffusers()
        self.spec = spec
        try:
            self.network = getattr(diffusers, class_name).from_pretrained(
                name, subfolder=subfolder, use_safetensors=True, torch_dtype=torch.float32
            )
        except Exception as error:  # the hub's client and the loader answer with many kinds
            raise CodecError(f"codec {spec!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        self.network.requires_grad_(False).eval()
        config: dict[str, Any] = {key: value for key, value in self.network.config.items() if not key.startswith("_")}
        self.has_deviation = class_name == "AutoencoderKL"
        self.channels = config["latent_channels"]
        if self.has_deviation:
            self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        else:
            self.factor = 2 ** (len(config["encoder_block_out_channels"]) - 1)
        self.hash = weights_hash(class_name, config, self.network)

    def encode(self, x: Tensor) -> Posterior:
        check_pictures(x, self.factor)
        encoded = self.network.encode(x)
        if not self.has_deviation:
            return Posterior(encoded.latents.float(), None)
        return Posterior(encoded.latent_dist.mean.float(), encoded.latent_dist.std.float())

    def decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample.float()

    def to(self, device: torch.device | str) -> "DiffusersCodec":
        self.network.to(device)
        return self


def class_of(spec: str, name: str, subfolder: str | None) -> ClassName:
    """Which of the classes a hub name or a folder holds, read from its config.json."""
    diffusers = _diffusers()
    try:
        config = diffusers.AutoencoderKL.load_config(name, subfolder=subfolder)  # of whatever class it is
    except Exception as error:
        where = "holds no config.json" if Path(name).is_dir() else "is no folder, and the hub did not give it"
        raise CodecError(
            f"codec {spec!r} {where} ({' '.join(str(error).split())[:200]}). Give `pixels`, a hub name such as "
            "stabilityai/sd-vae-ft-mse, or a local folder."
        ) from error
    class_name = config.get("_class_name")
    if class_name not in ("AutoencoderKL", "AutoencoderTiny"):
        raise CodecError(f"codec {spec!r} is a {class_name}; AutoencoderKL and AutoencoderTiny can be used.")
    return class_name


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise CodecError("codecs of diffusers need an extra: pip install 'tvmatch[data]'") from error
    return diffusers
