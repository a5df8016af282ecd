"""The semi-Lipschitz diffusion transformer of Terminal Velocity Matching (paper, section 5; DiT: arXiv 2212.09748).

- RMSNorm without affine parameters instead of LayerNorm, RMSNorm on queries and keys
- adaptive modulation whose six chunks a block (two in the final layer) are RMS-normalised
- linear weights of spectral norm 1, modulation and output layers zero, frozen 2-D sin-cos positions
- tangents carried as pairs between blocks (`tvmatch.networks.duals`)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tvmatch.networks.base import Network, Tangents
from tvmatch.networks.duals import PairModule
from tvmatch.networks.embeddings import Conditioning, grid_positions
from tvmatch.networks.layers import Attention, FeedForward, Linear, Modulation, init_spectral_, modulate, rms_norm


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT."""

    image_size: int = 32  # pixels (or latent cells) a side
    channels: int = 4
    num_classes: int = 1000  # 0: unconditional
    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    modulation_norm: bool = True
    qk_norm: bool = True

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "patch_size", "hidden_size", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 (unconditional) or more, got {self.num_classes}.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}.")


class Block(PairModule):
    """(tokens [B, N, C], conditioning [B, C]) -> tokens: modulated attention and MLP with residuals."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.modulation = Modulation(size, 6, config.modulation_norm)
        self.attention = Attention(size, config.num_heads, config.qk_norm)
        self.mlp = FeedForward(size, int(size * config.mlp_ratio))

    def body(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        x = x + gate_a * self.attention(modulate(rms_norm(x), shift_a, scale_a))
        return x + gate_m * self.mlp(modulate(rms_norm(x), shift_m, scale_m))


class FinalLayer(PairModule):
    """(tokens [B, N, C], conditioning [B, C]) -> patches [B, N, p * p * channels]."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.hidden_size, 2, config.modulation_norm)
        self.linear = Linear(config.hidden_size, config.patch_size**2 * config.channels)

    def body(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(modulate(rms_norm(x), *self.modulation(c)))


class DiT(Network):
    """F(x, t, s, class, w): images [B, channels, image_size, image_size] to displacements of the same shape.

    With `tangents` it returns the pair (F, dF), where dF is the derivative along (x, t, s); None stands for zero.
    """

    carries_tangents = True

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config.num_classes, (config.channels, config.image_size, config.image_size))
        self.config = config
        self.patches = Linear(config.patch_size**2 * config.channels, config.hidden_size)
        self.conditioning = Conditioning(config.hidden_size, config.num_classes)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = FinalLayer(config)
        side = config.image_size // config.patch_size
        self.register_buffer("positions", torch.empty(side * side, config.hidden_size), persistent=False)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initial weights: spectral norm 1; modulation and output zero; embeddings N(0, 0.02^2); biases zero."""
        with torch.no_grad():
            side = self.config.image_size // self.config.patch_size
            self.positions.copy_(grid_positions(self.config.hidden_size, side, side))
            self.conditioning.label.weight.normal_(std=0.02, generator=generator)
            for name, module in self.named_modules():
                if isinstance(module, Linear):
                    module.bias.zero_()
                    if name.endswith("modulation.linear") or name == "final.linear":
                        module.weight.zero_()
                    else:
                        init_spectral_(module.weight, generator)

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor, tangents: Tangents | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        h = self.patches(self.to_patches(x)) + self.positions
        if tangents is None:
            c = self.conditioning(t, s, 1 / w, label)
            for block in self.blocks:
                h = block(h, c)
            return self.to_image(self.final(h, c))
        th = torch.zeros_like(h) if tangents.x is None else self.to_patches(tangents.x) @ self.patches.weight.T
        if tangents.t is None and tangents.s is None:
            c, tc = self.conditioning(t, s, 1 / w, label), None
        else:
            c, tc = self.conditioning(t, s, 1 / w, label, tangents=(tangents.t, tangents.s, None, None))
        for block in self.blocks:
            h, th = block(h, c, tangents=(th, tc))
        y, ty = self.final(h, c, tangents=(th, tc))
        return self.to_image(y), self.to_image(ty)

    def to_patches(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, N, channels * p * p]."""
        p, side = self.config.patch_size, self.config.image_size // self.config.patch_size
        x = x.reshape(x.shape[0], self.config.channels, side, p, side, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def to_image(self, patches: Tensor) -> Tensor:
        """[B, N, p * p * channels] -> [B, channels, H, W]."""
        p, side = self.config.patch_size, self.config.image_size // self.config.patch_size
        patches = patches.reshape(patches.shape[0], side, side, p, p, self.config.channels)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def layers(self) -> Iterator[nn.Module]:
        """The equal blocks, in order: what is compiled, checkpointed and sharded one by one."""
        return iter(self.blocks)
