"""A modulated residual MLP for point clouds: the DiT without attention, on one token."""

from dataclasses import dataclass

from torch import Tensor

from tvmatch.networks.duals import PairModule
from tvmatch.networks.layers import FeedForward, Modulation, Norm, add_norm_modulate
from tvmatch.networks.modulated import Initialisation, ModulatedNetwork, check_choices


@dataclass(frozen=True)
class MLPConfig:
    """The shape of an MLP."""

    dimension: int = 2  # coordinates of a point
    num_classes: int = 0  # 0: unconditional
    hidden_size: int = 128
    depth: int = 4
    mlp_ratio: float = 2.0
    modulation_norm: bool = True
    norm: Norm = "rms"  # of the hidden vector
    initialisation: Initialisation = "spectral"
    as_pictures: bool = False  # points are pictures of size 1, [B, dimension, 1, 1], as the training loop has them

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("dimension", "hidden_size", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 (unconditional) or more, got {self.num_classes}.")


class MLPBlock(PairModule):
    """A modulated feed-forward layer with a residual: (x, gate, update, conditioning [B, C]) -> (x, gate, update); the
    token is x + gate update (see `networks.dit.Block`)."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.hidden_size, 3, config.modulation_norm)
        self.mlp = FeedForward(config.hidden_size, int(config.hidden_size * config.mlp_ratio))
        self.norm = config.norm

    def body(self, x: Tensor, gate: Tensor, update: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate_m = self.modulation(c)
        dtype = self.mlp.fc1.compute_dtype
        x, h = add_norm_modulate(x, shift, scale, gate, update, dtype=dtype, norm=self.norm)
        return x, gate_m, self.mlp(h)


class MLP(ModulatedNetwork):
    """F(x, t, s, class, w) for points [B, dimension], or [B, dimension, 1, 1] where the configuration says so."""

    def __init__(self, config: MLPConfig, initialise: bool = True) -> None:
        super().__init__(
            blocks=(MLPBlock(config) for _ in range(config.depth)),
            data_shape=(config.dimension, 1, 1) if config.as_pictures else (config.dimension,),
            num_classes=config.num_classes,
            token_size=config.dimension,
            hidden_size=config.hidden_size,
            modulation_norm=config.modulation_norm,
            norm=config.norm,
            initialisation=config.initialisation,
            initialise=initialise,
        )
        self.config = config

    def to_tokens(self, x: Tensor) -> Tensor:
        """[B, *data_shape] -> [B, 1, dimension]."""
        return x.flatten(1)[:, None]

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """[B, 1, dimension] -> [B, *data_shape]."""
        return tokens.reshape(len(tokens), *self.data_shape)
