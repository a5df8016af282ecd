"""A U-Net for pixels of the ADM and EDM kind (arXiv 2105.05233, 2206.00364), conditioned like the DiT.

- residual blocks: group norm, SiLU, 3 x 3 convolution, twice; the second norm is modulated (scale and shift)
- down by means of 2 x 2 pixels, up by repetition, both in the residual blocks; skip connections by concatenation
- self-attention, with RMS-normalised queries and keys, at low resolutions
- (t, t - s, 1/w, class) as in `tvmatch.networks.embeddings`

Tangents come by the generic path: the network is written plainly, and `FlowMap` differentiates it as a whole by forward
mode. It therefore runs uncompiled, in the dtype of its weights and without recomputation; the engine refuses the rest.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tvmatch.networks.base import Network
from tvmatch.networks.convolutions import Conv, GroupNorm, double, halve
from tvmatch.networks.embeddings import Conditioning
from tvmatch.networks.layers import Attention, Linear

HEAD_SIZE = 64  # of attention, where the channels allow it


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net."""

    image_size: int = 32  # pixels a side
    channels: int = 3
    num_classes: int = 10  # 0: unconditional
    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2)  # of base_channels, for each resolution from the full one down by halves
    blocks: int = 2  # residual blocks a resolution on the way down; one more on the way up
    attention: tuple[int, ...] = (16, 8)  # resolutions, in pixels a side, that have self-attention

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention"):  # a checkpoint's header holds lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("image_size", "channels", "base_channels", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 (unconditional) or more, got {self.num_classes}.")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be one number or more, each at least 1, got {self.multipliers}.")
        if self.image_size % 2 ** (len(self.multipliers) - 1):
            raise ValueError(
                f"image_size={self.image_size} cannot be halved {len(self.multipliers) - 1} times, once between every "
                "two multipliers."
            )
        sides = self.sides
        if unknown := set(self.attention) - set(sides):
            raise ValueError(f"attention at {min(unknown)} pixels a side, but the resolutions are {sides}.")

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels a side of every resolution, the full one first."""
        return tuple(self.image_size // 2**level for level in range(len(self.multipliers)))


class ResidualBlock(nn.Module):
    """(x [B, in, H, W], conditioning [B, E]) -> [B, out, H', W'], attended to if `attention`."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        attention: bool = False,
        resample: Literal["halve", "double"] | None = None,
    ) -> None:
        super().__init__()
        self.resample = {"halve": halve, "double": double, None: nn.Identity()}[resample]
        self.norm1, self.conv1 = GroupNorm(channels), Conv(channels, out_channels)
        self.modulation = Linear(embedding, 2 * out_channels)
        self.norm2, self.conv2 = GroupNorm(out_channels), Conv(out_channels, out_channels)
        self.skip = Conv(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        self.attention = SelfAttention(out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(self.resample(functional.silu(self.norm1(x))))
        scale, shift = self.modulation(functional.silu(c))[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.attention(self.skip(self.resample(x)) + self.conv2(functional.silu(h)))


class SelfAttention(nn.Module):
    """[B, C, H, W] -> the same, with what every pixel takes from all of them added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.attention = Attention(channels, max(channels // HEAD_SIZE, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        return x + tokens.transpose(1, 2).reshape(x.shape)


class UNet(Network):
    """F(x, t, s, class, w) for pictures [B, channels, image_size, image_size]."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config.num_classes, (config.channels, config.image_size, config.image_size))
        self.config = config
        embedding = 4 * config.base_channels
        self.conditioning = Conditioning(embedding, config.num_classes)
        widths = [multiplier * config.base_channels for multiplier in config.multipliers]
        attended = [side in config.attention for side in config.sides]
        self.first = Conv(config.channels, config.base_channels)
        channels, kept = config.base_channels, [config.base_channels]
        self.down = nn.ModuleList()
        for level, (width, attends) in enumerate(zip(widths, attended, strict=True)):
            if level:
                self.down.append(ResidualBlock(channels, channels, embedding, resample="halve"))
                kept.append(channels)
            for _ in range(config.blocks):
                self.down.append(ResidualBlock(channels, width, embedding, attends))
                channels = width
                kept.append(channels)
        lowest = bool(attended[-1])
        self.middle = nn.ModuleList(
            (ResidualBlock(channels, channels, embedding, lowest), ResidualBlock(channels, channels, embedding))
        )
        self.up = nn.ModuleList()
        for level in range(len(widths) - 1, -1, -1):
            for _ in range(config.blocks + 1):
                self.up.append(ResidualBlock(channels + kept.pop(), widths[level], embedding, attended[level]))
                channels = widths[level]
            if level:
                self.up.append(ResidualBlock(channels, channels, embedding, resample="double"))
        self.norm, self.last = GroupNorm(channels), Conv(channels, config.channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros where a block, an attention and the network end, so that all begin as the identity; class embeddings
        N(0, 1), as ADM's (arXiv 2105.05233): with a DiT's 0.02 no class is felt for hundreds of steps, for no norm lies
        between them and the blocks here. All others keep PyTorch's initial weights."""
        with torch.no_grad():
            self.conditioning.label.weight.normal_()
            ends = [m.conv2 for m in self.modules() if isinstance(m, ResidualBlock)]
            ends += [m.proj for m in self.modules() if isinstance(m, Attention)]
            for layer in (*ends, self.last):
                layer.weight.zero_()
                layer.bias.zero_()

    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        c = self.conditioning(t, s, 1 / w, label)
        h = self.first(x)
        kept = [h]
        for block in self.down:
            h = block(h, c)
            kept.append(h)
        for block in self.middle:
            h = block(h, c)
        for block in self.up:
            h = block(h if block.resample is double else torch.cat([h, kept.pop()], dim=1), c)
        return self.last(functional.silu(self.norm(h)))
