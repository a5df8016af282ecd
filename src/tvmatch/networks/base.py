"""What a flow map asks of its network: F(x, t, s, class, w), and its derivative along (x, t, s)."""

from typing import NamedTuple

from torch import Tensor, nn


class Tangents(NamedTuple):
    """A direction in (x, t, s): each part has the shape of its primal, or is None where it is zero."""

    x: Tensor | None = None
    t: Tensor | None = None
    s: Tensor | None = None


class Network(nn.Module):
    """Base class of networks.

    `forward(x, t, s, label, w, tangents=None)` takes data [B, *data_shape], times t and s [B], classes [B] (int64, -1
    is the null class) and guidance scales w [B], and returns F with the shape of x; with `tangents`, the pair (F, dF).
    A network that sets `carries_tangents = False` need not know of tangents: `FlowMap` then differentiates it by
    forward mode as a whole.
    """

    carries_tangents: bool = False

    def __init__(self, num_classes: int, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.data_shape = data_shape
