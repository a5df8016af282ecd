"""Networks by name, `DiT-XL/2` and the like, and networks from their configuration."""

import difflib
import re
from typing import Any, NamedTuple

from torch.overrides import TorchFunctionMode

from tvmatch.networks.base import Network
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.networks.unet import UNet, UNetConfig


class Size(NamedTuple):
    """What a preset fixes of a DiT."""

    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0


class UNetSize(NamedTuple):
    """What a preset fixes of a U-Net; `attended` are the levels with self-attention, 0 the full resolution."""

    base_channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attended: tuple[int, ...]


SIZES = {
    "Digits": Size(hidden_size=128, depth=4, num_heads=4),
    "Tiny": Size(hidden_size=192, depth=6, num_heads=3),
    "S": Size(hidden_size=384, depth=12, num_heads=6),
    "B": Size(hidden_size=768, depth=12, num_heads=12),
    "L": Size(hidden_size=1024, depth=24, num_heads=16),
    "XL": Size(hidden_size=1152, depth=28, num_heads=18),
}
POINTS = re.compile(r"MLP-(\d+)x(\d+)")
PATCH_SIZES = (1, 2, 4, 8)
NETWORKS = {f"DiT-{size}/{patch}": (SIZES[size], patch) for size in SIZES for patch in PATCH_SIZES}
UNETS = {
    "UNet-Tiny": UNetSize(base_channels=32, multipliers=(1, 2), blocks=1, attended=(1,)),
    "UNet-CIFAR": UNetSize(base_channels=128, multipliers=(1, 2, 2), blocks=3, attended=(1, 2)),
}
NetworkConfig = DiTConfig | MLPConfig | UNetConfig


def network_config(preset: str, image_size: int, channels: int, num_classes: int) -> NetworkConfig:
    """The configuration of a named preset for pictures [channels, image_size, image_size] of `num_classes` classes
    (0: unconditional); `MLP-128x3` is a network of hidden size 128 and depth 3 for points, which are pictures of size 1
    with a channel for each coordinate. `ValueError` if there is no such preset, or it does not fit the data."""
    if (mlp := POINTS.fullmatch(preset)) is not None:
        if image_size != 1:
            raise ValueError(f"{preset} is a network for points, not for pictures of {image_size} pixels a side.")
        return MLPConfig(channels, num_classes, hidden_size=int(mlp[1]), depth=int(mlp[2]), as_pictures=True)
    if preset in UNETS:
        size = UNETS[preset]
        sides = [image_size // 2**level for level in range(len(size.multipliers))]
        attention = tuple(sides[level] for level in size.attended)
        return UNetConfig(image_size, channels, num_classes, *size[:3], attention=attention)
    if preset not in NETWORKS:
        names = [*NETWORKS, *UNETS]
        near = difflib.get_close_matches(preset, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}."
        raise ValueError(f"no network is called {preset!r}; {hint}")
    size, patch_size = NETWORKS[preset]
    return DiTConfig(
        image_size=image_size, channels=channels, num_classes=num_classes, patch_size=patch_size, **size._asdict()
    )


def build_network(config: NetworkConfig, initialise: bool = True) -> Network:
    """A freshly initialised network of the given shape. Without `initialise` its weights are whatever lay in memory,
    for a caller who loads all of them: to make initial ones of DiT-XL takes a CPU a minute or two."""
    if not initialise:
        with _Uninitialised():
            return _build(config, initialise=False)
    return _build(config, initialise=True)


def _build(config: NetworkConfig, initialise: bool) -> Network:
    match config:
        case DiTConfig():
            return DiT(config, initialise)
        case MLPConfig():
            return MLP(config, initialise)
        case UNetConfig():
            return UNet(config)
    raise TypeError(f"no network has a configuration of type {type(config).__name__}.")


class _Uninitialised(TorchFunctionMode):
    """Layers made inside are not filled with PyTorch's initial numbers either."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
