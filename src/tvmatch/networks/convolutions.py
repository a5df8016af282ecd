"""The layers of the U-Net: convolution, group normalisation, resampling. Each accepts plain and dual tensors."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from tvmatch.kernels.tangents import unpack
from tvmatch.networks.layers import layer_norm

EPS = 1e-5  # added to variances before their root is taken


class Conv(nn.Conv2d):
    """A convolution with stride 1 that keeps the size; of a dual tensor, two plain ones with the bias on the primal
    only."""

    def __init__(self, channels: int, out_channels: int, size: int = 3) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2)

    def forward(self, input: Tensor) -> Tensor:
        primal, tangent = unpack(input)
        output = functional.conv2d(primal, self.weight, self.bias, padding=self.padding)
        if tangent is None:
            return output
        return forward_ad.make_dual(output, functional.conv2d(tangent, self.weight, padding=self.padding))


class GroupNorm(nn.Module):
    """[B, C, H, W] normalised over groups of channels (arXiv 1803.08494), with a learned weight and bias [C].

    At most 32 groups, with 4 channels or more in each.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = next(count for count in range(min(32, max(channels // 4, 1)), 0, -1) if channels % count == 0)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normalised = layer_norm(x.reshape(x.shape[0], self.groups, -1), EPS).reshape(x.shape)
        return torch.addcmul(self.bias[:, None, None], normalised, self.weight[:, None, None])


def halve(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H/2, W/2]: means of 2 x 2 pixels."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // 2, 2, width // 2, 2).mean((3, 5))


def double(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]: every pixel four times."""
    batch, channels, height, width = x.shape
    wide = x[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
    return wide.reshape(batch, channels, 2 * height, 2 * width)
