"""Our networks as a model of diffusers: `config.json` and safetensors, `from_pretrained` and `save_pretrained`."""

from typing import Any, Self

from diffusers import ConfigMixin, ModelMixin  # diffusers looks for ModelMixin here when it loads the class by its name
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.networks.presets import build_network
from tvmatch.training.header import network_from_header


def safetensors_only(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a `from_pretrained` of diffusers that keep it from reading a pickle; `ValueError` for one that asks
    for it."""
    if options.get("use_safetensors") is False:
        raise ValueError("use_safetensors=False would read a pickle, which tvmatch never does; leave it out.")
    return {**options, "use_safetensors": True}


class SafetensorsModel(ModelMixin, ConfigMixin):
    """A model of diffusers whose weights are never read from a pickle."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As diffusers does, from safetensors only."""
        return super().from_pretrained(*args, **safetensors_only(kwargs))


class TVMatchTransformer(SafetensorsModel):
    """w F(x, t, s, class, w), the mean velocity of the jump from time t down to s; the velocity itself at s = t.

    network  the network's configuration, as a checkpoint's header holds it
    scaled   whether the network's output is multiplied by w
    """

    @register_to_config
    def __init__(self, network: dict[str, Any], scaled: bool = True) -> None:
        super().__init__()
        shape = network_from_header(dict(network), "the transformer's config.json")
        self.flow = FlowMap(build_network(shape), scaled)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of what it draws."""
        return self.flow.network.data_shape

    @property
    def num_classes(self) -> int:
        """Classes it knows; 0 for a model without."""
        return self.flow.network.num_classes

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        timestep_end: Tensor,
        class_labels: Tensor,
        guidance_scale: Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """sample [B, *data_shape] in the model's dtype; the two times, 1 >= timestep >= timestep_end >= 0, and the
        guidance scale float32 [B] (times in 16 bits would blur together); class_labels int64 [B], -1 for no class.
        `ValueError` names what does not fit."""
        velocity = self.flow.average_velocity(sample, timestep, timestep_end, class_labels, guidance_scale)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)
