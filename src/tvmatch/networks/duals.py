"""Tangents carried as pairs: forward mode inside a module, plain tensors between modules (docs/mathematics.md).

A module writes its arithmetic once, in `body`. Called plainly it runs `body` on plain tensors; called with
`tangents=` it opens a dual level, runs the same `body` on dual tensors, and returns the pair (primal, tangent).
Nothing but plain tensors crosses its border, so checkpointing, `torch.compile`, DDP and FSDP see an ordinary module.

Forward-mode AD fails silently in PyTorch: what has no rule yields no tangent, or a zero. Every exit from a dual
level therefore passes `check_pair`, and `tvmatch.networks.probe` compares a whole network with finite differences.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Values = TypeVar("Values", Tensor, tuple[Tensor, ...])


class TangentError(RuntimeError):
    """A tangent was lost: dropped, detached from the graph, or zero where the function does move."""


def check_pair(primal: Tensor, tangent: Tensor | None, where: str) -> Tensor:
    """Return `tangent` if it is whole; raise `TangentError` if it was dropped, detached, or has another shape."""
    if tangent is None:
        raise TangentError(
            f"{where}: the output has no tangent. Some operation inside has no forward-mode rule, or detached its "
            "input (.detach(), .data, torch.no_grad, a custom autograd.Function without jvp, a compiled one with it). "
            "Write that operation with PyTorch's own functions or as a pair of plain computations."
        )
    if tangent.shape != primal.shape or tangent.dtype != primal.dtype:
        raise TangentError(
            f"{where}: primal {tuple(primal.shape)} {primal.dtype} but tangent {tuple(tangent.shape)} {tangent.dtype}."
        )
    if torch.is_grad_enabled() and primal.requires_grad and not tangent.requires_grad:
        raise TangentError(
            f"{where}: the primal carries gradients but its tangent does not, so nothing would be learned through it. "
            "Some operation inside computes its tangent under no_grad or detaches it, or the only trained parameters "
            "are added at its end, where no derivative sees them."
        )
    return tangent


def push_forward(
    function: Callable[..., Values],
    primals: Sequence[Tensor | None],
    tangents: Sequence[Tensor | None],
    where: str,
) -> tuple[Values, Values]:
    """Value and directional derivative of `function` at `primals` along `tangents` (None stands for zero).

    Both are tuples where the function returns one. Gradients flow back through both results. Raises `TangentError` if
    the tangent is lost on the way, if every given tangent is None, or if a dual level is already open.
    """
    if len(primals) != len(tangents):
        raise ValueError(f"{where}: {len(primals)} primals but {len(tangents)} tangents; give one (or None) for each.")
    if all(tangent is None for tangent in tangents):
        raise TangentError(f"{where}: every tangent is None, so the derivative is zero; call it without tangents.")
    if forward_ad._current_level >= 0:
        raise TangentError(
            f"{where}: a forward-mode dual level is already open. Levels do not nest, and all threads share them: call "
            "the network plainly inside your own dual_level or torch.func.jvp, or pass tangents= outside it and in one "
            "thread at a time. If a failed trace left the level open, close it with "
            "tvmatch.networks.duals.close_dual_levels()."
        )
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        raise TangentError(f"{where}: torch.inference_mode switches forward mode off; use torch.no_grad instead.")
    with forward_ad.dual_level():
        inputs = [p if t is None else forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
        results = function(*inputs) if torch.compiler.is_compiling() else _told(function, inputs, where)
        if isinstance(results, Tensor):
            primal, tangent = forward_ad.unpack_dual(results)
            return primal, check_pair(primal, tangent, where)
        pairs = [forward_ad.unpack_dual(result) for result in results]
    return tuple(p for p, _ in pairs), tuple(check_pair(p, t, where) for p, t in pairs)


def _told(function: Callable[..., Values], inputs: Sequence[Tensor], where: str) -> Values:
    """`function` of dual tensors; an operation without a forward-mode rule is named in words of ours."""
    try:
        return function(*inputs)
    except NotImplementedError as error:
        if "forward AD" not in str(error):
            raise
        raise TangentError(
            f"{where}: {' '.join(str(error).split())[:200]} Write that operation with others; for attention take "
            "tvmatch.kernels.dual_attention.scaled_dot_product_attention."
        ) from error


def close_dual_levels() -> int:
    """Close every open forward-mode level (a failed `torch.compile` trace can leave one); return their number."""
    count = 0
    while forward_ad._current_level >= 0:
        forward_ad.exit_dual_level()
        count += 1
    return count


class PairModule(nn.Module):
    """A module that carries tangents as pairs: subclasses write `body`, callers may add `tangents=`.

    `forward` only chooses between `plain` and `pair`. These two are what the engine compiles or wraps, each on its own:
    compiled variants with and without tangents then never share guards (in torch 2.13 that fails inside Dynamo).
    """

    def body(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The module's arithmetic, once, for plain and for dual tensors; the result is a tensor or a tuple of them."""
        raise NotImplementedError(f"{type(self).__name__} must define body()")

    def plain(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`body` on plain tensors."""
        return self.body(*inputs)

    def pair(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple:
        """`body` on dual tensors: the pair (primal, tangent), each as `body` returns it."""
        return push_forward(self.body, inputs, tangents, type(self).__name__)

    def forward(self, *inputs: Tensor, tangents: Sequence[Tensor | None] | None = None) -> Tensor | tuple:
        """`body(*inputs)`, or with one tangent (or None) per input the pair (primal, tangent)."""
        return self.plain(*inputs) if tangents is None else self.pair(inputs, tangents)
