"""16-bit copies of the weights, made once a step instead of in every call of a network.

A TVM step uses each weight in three calls and two backward passes; a cast in each reads and writes all of them. The
danger is a copy that is older than its weight, which nothing downstream would notice. So the copies are made anew at
the beginning of every call of the objective, inside what a CUDA graph records, and before any call of a network from
outside the objective. (Versions of tensors cannot tell: a fused optimiser does not count its writes.)
"""

import torch
from torch import Tensor, nn

from tvmatch.networks.layers import Linear
from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.objectives import Objective


class WeightCopies:
    """Copies for every layer of these networks that computes in another dtype than its weights have, used from now on.

    Not for weights that are sharded: their layers see whole weights only while they run.
    """

    def __init__(self, objective: Objective) -> None:
        self.weights: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.fresh = False  # while the objective runs: nothing changes a weight between its calls of the networks
        for flow in (objective.flow, objective.target):
            if flow is not None and isinstance(flow.network, ModulatedNetwork):
                self._add(flow.network)
        objective.register_forward_pre_hook(lambda *_: self._begin())
        objective.register_forward_hook(lambda *_: self._end(), always_call=True)

    def _add(self, network: nn.Module) -> None:
        for layer in network.modules():
            if isinstance(layer, Linear) and layer.compute_dtype not in (None, layer.weight.dtype):
                layer.copies = tuple(w.detach().to(layer.compute_dtype) for w in (layer.weight, layer.bias))
                self.weights += (layer.weight, layer.bias)
                self.copies += layer.copies
        network.register_forward_pre_hook(lambda *_: None if self.fresh else self.refresh())

    @torch.no_grad()
    def refresh(self) -> None:
        """Make every copy equal to its weight, rounded."""
        if self.copies:
            torch._foreach_copy_(self.copies, self.weights)

    def _begin(self) -> None:
        self.refresh()
        self.fresh = True

    def _end(self) -> None:
        self.fresh = False
