"""Tiny autoencoders of the TAESD family as a model of diffusers; TAEF2, too, which `AutoencoderTiny` cannot hold."""

from diffusers import ModelMixin  # noqa: F401 (diffusers looks for it here when it loads the class by its name)
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from tvmatch.data.codecs.base import check_pictures
from tvmatch.data.codecs.tiny import TinyCodec, network_of
from tvmatch.integrations.diffusers.transformer import SafetensorsModel


class TVMatchTinyCodec(SafetensorsModel):
    """`tvmatch.data.codecs.tiny.TinyCodec`: pictures [B, 3, H, W] in [-1, 1] to latents and back.

    encoder, decoder  the shapes of the two halves' weights, by their names; they tell the network
    factor            pixels a side that become one latent cell
    """

    @register_to_config
    def __init__(self, encoder: dict[str, list[int]], decoder: dict[str, list[int]], factor: int) -> None:
        super().__init__()
        self.network = network_of(encoder, decoder)

    @classmethod
    def of(cls, codec: TinyCodec) -> "TVMatchTinyCodec":
        """The same codec, with its weights."""
        shapes = [
            {name: list(value.shape) for name, value in codec.network[half].state_dict().items()}
            for half in ("encoder", "decoder")
        ]
        made = cls(*shapes, factor=codec.factor)
        made.network.load_state_dict(codec.network.state_dict())
        return made.requires_grad_(False).eval()

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """Latents of pictures whose sides are multiples of `factor`."""
        check_pictures(x, self.config.factor)
        latents = self.network["encoder"](x * 0.5 + 0.5)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Pictures of latents; values may leave [-1, 1] a little."""
        sample = self.network["decoder"](z) * 2 - 1
        return DecoderOutput(sample=sample) if return_dict else (sample,)
