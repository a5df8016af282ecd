"""What the network sees of times, guidance, class and position (DESIGN section 1)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tvmatch.networks.duals import PairModule
from tvmatch.networks.layers import Linear

FREQUENCIES = 256


def fourier_features(value: Tensor, features: int = FREQUENCIES, max_period: float = 10_000.0) -> Tensor:
    """[B] -> [B, features]: cosines, then sines, of `value` times max_period^(-i / (features/2)).

    Times enter as they are, not multiplied by 1000.
    """
    half = features // 2
    exponents = torch.arange(half, dtype=value.dtype, device=value.device) / half
    frequencies = torch.exp(-math.log(max_period) * exponents)
    angles = value[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ScalarEmbedding(nn.Module):
    """[B] -> [B, size]: Fourier features, then linear, SiLU, linear."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1 = Linear(FREQUENCIES, size)
        self.fc2 = Linear(size, size)

    def forward(self, value: Tensor) -> Tensor:
        return self.fc2(functional.silu(self.fc1(fourier_features(value))))


class Conditioning(PairModule):
    """(t, s, 1/w, class) -> the vector [B, size] that modulates every block: the sum of four embeddings of
    t, t - s, 1/w and the class; class -1 is the null class and has the last row of the table."""

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.time = ScalarEmbedding(size)
        self.gap = ScalarEmbedding(size)
        self.guidance = ScalarEmbedding(size)
        self.label = nn.Embedding(num_classes + 1, size)
        self.num_classes = num_classes

    def body(self, t: Tensor, s: Tensor, inverse_w: Tensor, label: Tensor) -> Tensor:
        row = torch.where(label < 0, self.num_classes, label)
        return self.time(t) + self.gap(t - s) + self.guidance(inverse_w) + self.label(row)


def grid_positions(size: int, rows: int, columns: int) -> Tensor:
    """Frozen sin-cos positions [rows * columns, size], float64: half the features for the column, half for the row."""
    if size % 4:
        raise ValueError(f"hidden size {size} is not a multiple of 4, which 2-D sin-cos positions need.")
    frequencies = 1.0 / 10_000.0 ** (torch.arange(size // 4, dtype=torch.float64) / (size // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1).double() * frequencies for axis in (column, row)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=-1)
