"""The semi-Lipschitz diffusion transformer of Terminal Velocity Matching (paper, section 5; DiT: arXiv 2212.09748).

- RMSNorm without affine parameters instead of LayerNorm, RMSNorm on queries and keys
- adaptive modulation whose six chunks a block (two in the final layer) are RMS-normalised
- linear weights of spectral norm 1, modulation and output layers zero, frozen 2-D sin-cos positions
- tangents carried as pairs between blocks (`tvmatch.networks.duals`)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tvmatch.networks.duals import PairModule
from tvmatch.networks.embeddings import grid_positions
from tvmatch.networks.layers import Attention, FeedForward, Modulation, Norm, add_norm_modulate
from tvmatch.networks.modulated import Initialisation, ModulatedNetwork, check_choices


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
    norm: Norm = "rms"  # of tokens
    initialisation: Initialisation = "spectral"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("image_size", "channels", "patch_size", "hidden_size", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 (unconditional) or more, got {self.num_classes}.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}.")


class Block(PairModule):
    """Modulated attention and MLP with residuals: (x, gate, update, conditioning [B, C]) -> (x, gate, update).

    The residual stream is x + gate update, x and update [B, N, C], gate [B, 1, C]: a block hands its last addend on,
    and whoever normalises the sum next adds it in the same pass over memory.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.modulation = Modulation(size, 6, config.modulation_norm)
        self.attention = Attention(size, config.num_heads, config.qk_norm)
        self.mlp = FeedForward(size, int(size * config.mlp_ratio))
        self.norm = config.norm

    def body(self, x: Tensor, gate: Tensor, update: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        dtype = self.attention.qkv.compute_dtype
        # the block before has kept x as the sum of its second norm
        x, h = add_norm_modulate(x, shift_a, scale_a, gate, update, dtype=dtype, norm=self.norm, again=True)
        x, h = add_norm_modulate(x, shift_m, scale_m, gate_a, self.attention(h), dtype=dtype, norm=self.norm)
        return x, gate_m, self.mlp(h)


def _place_positions(network: "DiT", *_: object) -> None:
    """Positions of the dtype and on the device of the weights; not a lambda, for networks are copied and pickled."""
    network.positions = network._positions()


class DiT(ModulatedNetwork):
    """F(x, t, s, class, w): images [B, channels, image_size, image_size] to displacements of the same shape.

    With `tangents` it returns the pair (F, dF), where dF is the derivative along (x, t, s); None stands for zero.
    """

    def __init__(self, config: DiTConfig, initialise: bool = True) -> None:
        super().__init__(
            blocks=(Block(config) for _ in range(config.depth)),
            data_shape=(config.channels, config.image_size, config.image_size),
            num_classes=config.num_classes,
            token_size=config.patch_size**2 * config.channels,
            hidden_size=config.hidden_size,
            modulation_norm=config.modulation_norm,
            norm=config.norm,
            initialisation=config.initialisation,
            initialise=initialise,
        )
        self.config = config
        self.side = config.image_size // config.patch_size
        self.register_buffer("positions", self._positions(), persistent=False)
        # they are in no state dict: a network that was made without memory (`meta`) gets them with its weights
        self.register_load_state_dict_post_hook(_place_positions)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        if hasattr(self, "positions"):  # not yet while the network is made
            _place_positions(self)

    def _positions(self) -> Tensor:
        weight = self.patches.weight
        positions = grid_positions(self.config.hidden_size, self.side, self.side)
        # not `.to(weight)`: a sharded weight is a tensor of another kind
        return positions.to(positions.device if weight.is_meta else weight.device, weight.dtype)

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(x) + self.positions

    def to_tokens(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, N, channels * p * p], one token a patch, row by row."""
        p = self.config.patch_size
        x = x.reshape(x.shape[0], self.config.channels, self.side, p, self.side, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """[B, N, p * p * channels] -> [B, channels, H, W]; the official layout, channels innermost."""
        p = self.config.patch_size
        tokens = tokens.reshape(tokens.shape[0], self.side, self.side, p, p, self.config.channels)
        return tokens.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
