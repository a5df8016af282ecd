"""The ``torch.library`` operator: which kernel runs, autograd, vmap.

Three rules keep tangents from vanishing:

1. the operator takes primals and tangents as six plain tensors, so that compilers, checkpointing and autograd see an
   ordinary function with one joint backward;
2. its Autograd kernel is written here rather than generated, because the generated one drops the tangents of its inputs
   without a word (at every level of ``torch.func`` too): an input with a tangent of its own raises;
3. `scaled_dot_product_attention` is the one place where dual tensors are taken apart and put together again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from tvmatch.kernels.tangents import refuse_tangents

from . import reference
from .checks import check_length_values
from .rest import empty_rest

_library = torch.library.Library("tvmatch", "FRAGMENT")
_library.define(
    "dual_attention(Tensor q, Tensor k, Tensor v, Tensor? tq, Tensor? tk, Tensor? tv, Tensor? kv_lengths, "
    "float scale, bool causal, str backend, bool keep_rest=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "dual_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? tq, Tensor? tk, Tensor? tv, Tensor? kv_lengths, "
    "Tensor o, Tensor to, Tensor lse, Tensor mu, Tensor rest, Tensor do, Tensor dto, float scale, bool causal, "
    "str backend) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
forward_op = torch.ops.tvmatch.dual_attention.default
backward_op = torch.ops.tvmatch.dual_attention_backward.default


def _kernel(backend: str, q: Tensor, k: Tensor) -> ModuleType | None:
    """The one place that chooses: the module of the fused kernel, or None for the reference."""
    if backend == "reference" or (backend == "auto" and not q.is_cuda):
        return None
    try:
        from . import triton as fused
    except ImportError as error:
        if backend == "auto":
            return None
        raise ValueError("backend is 'triton', but triton cannot be imported: pip install triton") from error
    reason = fused.unsupported(q, k)
    if reason is None:
        return fused
    if backend == "auto":
        return None
    raise ValueError(f"{reason}; use backend='auto' or 'reference'")


def _present(tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [x for x in tensors if x is not None]


def _own_arithmetic(q: Tensor) -> AbstractContextManager:
    """The inputs have their final dtype: autocast must not reach into the arithmetic."""
    kind = q.device.type
    casting = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if casting else nullcontext()


def _forward(q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend, keep_rest=False):
    if q.device.type == "cpu":
        check_length_values(kv_lengths, k.shape[2])
    fused = _kernel(backend, q, k)
    run = reference.dual_attention_forward if fused is None else fused.forward
    with _own_arithmetic(q), torch.cuda.device_of(q):
        return run(q, k, v, tq, tk, tv, kv_lengths, scale, causal, keep_rest)


def _backward(q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, rest, do, dto, scale, causal, backend):
    fused = _kernel(backend, q, k)
    run = reference.dual_attention_backward if fused is None else fused.backward
    with _own_arithmetic(q), torch.cuda.device_of(q):
        return _present(run(q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, rest, do, dto, scale, causal))


def _forward_fake(q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend, keep_rest=False):
    statistics = q.new_empty(q.shape[:3], dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
    return torch.empty_like(q), torch.empty_like(q), statistics, torch.empty_like(statistics), empty_rest(q, keep_rest)


def _backward_fake(q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, rest, do, dto, scale, causal, backend):
    return [torch.empty_like(x) for x in _present((q, k, v, tq, tk, tv))]


def _below_autograd(op, keyset, *args):
    """Run an operator under the current level of autograd.

    ``Function.forward`` runs with gradients off. Under torch.func that would switch off the *outer* transforms too,
    and a gradient of a gradient would come out as zero instead of raising, so both modes are switched on again there.
    """
    keyset = keyset & torch._C._after_autograd_keyset
    with torch._C._AutoDispatchBelowAutograd():
        if torch._C._are_functorch_transforms_active():
            with torch.enable_grad(), fwAD._set_fwd_grad_enabled(True):
                return op.redispatch(keyset, *args)
        return op.redispatch(keyset, *args)


def _needs_grad(args: tuple) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)


class _DualAttention(torch.autograd.function._SingleLevelFunction):
    """One joint backward for the six inputs; what rounding o and to drops is kept for it (``rest.py``).

    Single-level: the dispatcher already peels the levels of torch.func.
    """

    @staticmethod
    def forward(ctx, keyset, q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend):
        outputs = _below_autograd(forward_op, keyset, q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend, True)
        ctx.save_for_backward(q, k, v, tq, tk, tv, kv_lengths, *outputs)
        ctx.mark_non_differentiable(*outputs[2:])
        ctx.set_materialize_grads(False)
        ctx.options = (scale, causal, backend)
        return outputs

    @staticmethod
    def backward(ctx, do, dto, _lse, _mu, _rest):
        nothing = (None,) * 11
        if do is None and dto is None:
            return nothing
        q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, rest = ctx.saved_tensors
        do, dto = (torch.zeros_like(o) if g is None else g for g in (do, dto))
        # Expanded gradients (of a sum, say) have no unit inner stride.
        do, dto = (g if g.stride(-1) == 1 else g.contiguous() for g in (do, dto))
        grads = iter(backward_op(q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, rest, do, dto, *ctx.options))
        six = [None if x is None else next(grads) for x in (q, k, v, tq, tk, tv)]
        return (None, *six, None, None, None, None)


def _forward_autograd(keyset, *args):
    refuse_tangents(
        args,
        "the tangent of an input of dual_attention",
        "call scaled_dot_product_attention with the dual tensors, or unpack them and pass tq, tk, tv. "
        "Second derivatives in forward mode (a jvp inside a jvp) are not supported",
    )
    if _needs_grad(args):
        with enable_single_level_autograd_function():
            return _DualAttention.apply(keyset, *args[:10])
    return _below_autograd(forward_op, keyset, *args)


class _NoDoubleBackward(torch.autograd.function._SingleLevelFunction):
    @staticmethod
    def forward(ctx, keyset, *args):
        return tuple(_below_autograd(backward_op, keyset, *args))

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(
            "dual attention has no double backward: its gradients cannot be differentiated again. "
            "Take the second derivative with plain PyTorch operators (softmax(q k^T) v) where it is needed"
        )


def _backward_autograd(keyset, *args):
    refuse_tangents(
        args,
        "the tangent of a gradient of dual_attention",
        "forward mode over its backward (a jvp around a grad) is not supported; "
        "take the jvp inside and the gradient outside",
    )
    if _needs_grad(args):
        with enable_single_level_autograd_function():
            return list(_NoDoubleBackward.apply(keyset, *args))
    return _below_autograd(backward_op, keyset, *args)


for _name, _real, _fake, _autograd in (
    ("dual_attention", _forward, _forward_fake, _forward_autograd),
    ("dual_attention_backward", _backward, _backward_fake, _backward_autograd),
):
    _library.impl(_name, _real, "CompositeExplicitAutograd")
    _library.impl(_name, _autograd, "Autograd", with_keyset=True)
    torch.library.register_fake(f"tvmatch::{_name}", _fake, lib=_library)


def _fold(x: Tensor | None, in_dim: int | None, size: int) -> Tensor | None:
    """Merge the dimension of a vmap into the batch dimension."""
    if x is None:
        return None
    x = x.expand(size, *x.shape) if in_dim is None else x.movedim(in_dim, 0)
    x = x.flatten(0, 1)
    return x if x.dim() < 4 or x.stride(-1) == 1 else x.contiguous()


def _forward_vmap(info, in_dims, *args):
    tensors, options = args[:7], args[7:]
    size = info.batch_size
    folded = [_fold(x, d, size) for x, d in zip(tensors, in_dims, strict=False)]
    outputs = forward_op(*folded, *options)
    return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0,) * len(outputs)


def _backward_vmap(info, in_dims, *args):
    *tensors, scale, causal, backend = args
    size = info.batch_size
    folded = [_fold(x, d, size) for x, d in zip(tensors, in_dims, strict=False)]
    outputs = backward_op(*folded, scale, causal, backend)
    return [x.unflatten(0, (size, -1)) for x in outputs], [0] * len(outputs)


torch.library.register_vmap("tvmatch::dual_attention", _forward_vmap, lib=_library)
torch.library.register_vmap("tvmatch::dual_attention_backward", _backward_vmap, lib=_library)
