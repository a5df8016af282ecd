"""16-bit copies of the weights, made once a step instead of in every call of a network.

A TVM step uses each weight in three calls and two backward passes; a cast in each reads and writes all of them. The
danger is a copy that is older than its weight, which nothing downstream would notice. So the copies are made anew at
the beginning of every call of the objective, inside what a CUDA graph records, and before any call of a network from
outside the objective. (Versions of tensors cannot tell: a fused optimiser does not count its writes.)

On the way back, each product of a step leaves its gradient of a weight in 16 bits, and one kernel a weight adds them
up in float32: products of the primal, of the tangent, and of each further call.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tvmatch.kernels.gradient_sum import gradient_sum
from tvmatch.networks.layers import Linear
from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.objectives import Objective

CALLS = 2  # of a network with gradients in a step: the jump and the boundary. What comes later shares the last's place


class _CopiesForCalls(torch.autograd.Function):
    """Of each pair (weight, its copy) the copy, `times` over, in the same memory; their gradients are added up for the
    weight, in its dtype."""

    @staticmethod
    def forward(ctx: FunctionCtx, times: int, *pairs: Tensor) -> tuple[Tensor, ...]:
        ctx.times, ctx.dtypes = times, [weight.dtype for weight in pairs[::2]]
        ctx.set_materialize_grads(False)
        return tuple(copy.detach() for copy in pairs[1::2] for _ in range(times))

    @staticmethod
    @once_differentiable  # the kernel that adds has no derivative
    def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        sums: list[Tensor | None] = []
        for number, dtype in enumerate(ctx.dtypes):
            parts = [g for g in gradients[number * ctx.times : (number + 1) * ctx.times] if g is not None]
            sums += [gradient_sum(parts, dtype) if parts else None, None]
        return None, *sums


class _BlockCopies:
    """The copies for one block's layers. Its node in the graph of gradients is made just before the block first runs
    in a step: the engine of autograd, which takes what was made last first, then adds up a block's gradients as soon
    as they are there, and they can leave for other ranks meanwhile."""

    def __init__(self, layers: list[Linear]) -> None:
        self.layers = layers
        self.plain = [[w.detach().to(layer.compute_dtype) for w in (layer.weight, layer.bias)] for layer in layers]
        self.forget()

    def forget(self) -> None:
        """Let go of the graph of the step before: a recorded step must make its own from the weights on."""
        self.calls, self.places = 0, ()
        for layer, (weight, bias) in zip(self.layers, self.plain, strict=True):
            layer.copies = (weight, bias, weight)

    def next_call(self) -> None:
        """Give the layers copies whose gradients have a place of their own. Called only where gradients are wanted."""
        if self.calls == 0:
            pairs = [
                tensor
                for layer, (weight, bias) in zip(self.layers, self.plain, strict=True)
                for tensor in (layer.weight, weight, layer.bias, bias)
            ]
            self.places = _CopiesForCalls.apply(2 * CALLS, *pairs)
        call = min(self.calls, CALLS - 1)
        self.calls += 1
        for number, layer in enumerate(self.layers):
            weight = 4 * CALLS * number  # 2 CALLS places of a weight, then as many of its bias
            layer.copies = (
                self.places[weight + 2 * call],
                self.places[weight + 2 * CALLS + call],
                self.places[weight + 2 * call + 1],
            )


class WeightCopies:
    """Copies for every layer of these networks that computes in another dtype than its weights have, used from now on.

    Not for weights that are sharded: their layers see whole weights only while they run.
    """

    def __init__(self, objective: Objective) -> None:
        self.weights: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.blocks: list[_BlockCopies] = []
        self.fresh = False  # while the objective runs: nothing changes a weight between its calls of the networks
        for flow in (objective.flow, objective.target):
            if flow is not None and isinstance(flow.network, ModulatedNetwork):
                self._add(flow.network)
        objective.register_forward_pre_hook(lambda *_: self._begin())
        objective.register_forward_hook(lambda *_: self._end(), always_call=True)

    def _add(self, network: ModulatedNetwork) -> None:
        for block in network.blocks:
            layers = [layer for layer in block.modules() if isinstance(layer, Linear)]
            layers = [layer for layer in layers if layer.compute_dtype not in (None, layer.weight.dtype)]
            if not layers:
                continue
            copies = _BlockCopies(layers)
            self.blocks.append(copies)
            for layer, plain in zip(layers, copies.plain, strict=True):
                self.weights += (layer.weight, layer.bias)
                self.copies += plain
            if any(layer.weight.requires_grad for layer in layers):
                block.register_forward_pre_hook(
                    lambda *_, copies=copies: copies.next_call() if torch.is_grad_enabled() else None
                )
        network.register_forward_pre_hook(lambda *_: None if self.fresh else self.refresh())

    @torch.no_grad()
    def refresh(self) -> None:
        """Make every copy equal to its weight, rounded, and forget who used it."""
        for block in self.blocks:
            block.forget()
        if self.copies:
            torch._foreach_copy_(self.copies, self.weights)

    def _begin(self) -> None:
        self.refresh()
        self.fresh = True

    def _end(self) -> None:
        self.fresh = False
