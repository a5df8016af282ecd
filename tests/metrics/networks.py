"""A small feature network as TorchScript, for tests."""

from pathlib import Path

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """[B, 3, 12, 12] -> [B, 12], a random convolution and means."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Conv2d(3, 12, 5, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu().mean((2, 3))


def save_small(path: Path, module: nn.Module | None = None) -> Path:
    """Write the network (or another) as `path`."""
    torch.jit.script((module or Small()).eval()).save(str(path))
    return path
