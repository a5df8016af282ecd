"""The public functions and the ``torch.library`` operator behind them.

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
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from . import reference
from .checks import check_inputs, check_length_values

BACKENDS = ("auto", "triton", "reference")

_library = torch.library.Library("tvmatch", "FRAGMENT")
_library.define(
    "dual_attention(Tensor q, Tensor k, Tensor v, Tensor? tq, Tensor? tk, Tensor? tv, Tensor? kv_lengths, "
    "float scale, bool causal, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "dual_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? tq, Tensor? tk, Tensor? tv, Tensor? kv_lengths, "
    "Tensor o, Tensor to, Tensor lse, Tensor mu, Tensor do, Tensor dto, float scale, bool causal, str backend) "
    "-> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_forward_op = torch.ops.tvmatch.dual_attention.default
_backward_op = torch.ops.tvmatch.dual_attention_backward.default


def _kernel(backend: str, q: Tensor) -> ModuleType | None:
    """The one place that chooses: the module of the fused kernel, or None for the reference."""
    if backend == "reference" or (backend == "auto" and not q.is_cuda):
        return None
    try:
        from . import triton as fused
    except ImportError as error:
        if backend == "auto":
            return None
        raise ValueError("backend is 'triton', but triton cannot be imported: pip install triton") from error
    reason = fused.unsupported(q)
    if reason is None:
        return fused
    if backend == "auto":
        return None
    raise ValueError(f"{reason}; use backend='auto' or 'reference'")


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")


def _present(tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [x for x in tensors if x is not None]


def _own_arithmetic(q: Tensor) -> AbstractContextManager:
    """The inputs have their final dtype: autocast must not reach into the arithmetic."""
    kind = q.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _forward(q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend):
    if q.device.type == "cpu":
        check_length_values(kv_lengths, k.shape[2])
    fused = _kernel(backend, q)
    run = reference.dual_attention_forward if fused is None else fused.forward
    with _own_arithmetic(q), torch.cuda.device_of(q):
        return run(q, k, v, tq, tk, tv, kv_lengths, scale, causal)


def _backward(q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, do, dto, scale, causal, backend):
    fused = _kernel(backend, q)
    run = reference.dual_attention_backward if fused is None else fused.backward
    with _own_arithmetic(q), torch.cuda.device_of(q):
        return _present(run(q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, do, dto, scale, causal))


def _forward_fake(q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend):
    statistics = q.new_empty(q.shape[:3], dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
    return torch.empty_like(q), torch.empty_like(q), statistics, torch.empty_like(statistics)


def _backward_fake(q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, do, dto, scale, causal, backend):
    return [torch.empty_like(x) for x in _present((q, k, v, tq, tk, tv))]


def _refuse_tangents(tensors: tuple, what: str, remedy: str) -> None:
    """Raise if a tensor carries a tangent at the level that is being differentiated: it would be dropped."""
    for x in tensors:
        if isinstance(x, Tensor) and fwAD.unpack_dual(x).tangent is not None:
            raise RuntimeError(f"{what} would be dropped without a word: {remedy}")


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
    """One joint backward for the six inputs. Single-level: the dispatcher already peels the levels of torch.func."""

    @staticmethod
    def forward(ctx, keyset, q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend):
        outputs = _below_autograd(_forward_op, keyset, q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend)
        ctx.save_for_backward(q, k, v, tq, tk, tv, kv_lengths, *outputs)
        ctx.mark_non_differentiable(*outputs[2:])
        ctx.set_materialize_grads(False)
        ctx.options = (scale, causal, backend)
        return outputs

    @staticmethod
    def backward(ctx, do, dto, _lse, _mu):
        nothing = (None,) * 11
        if do is None and dto is None:
            return nothing
        q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu = ctx.saved_tensors
        do, dto = (torch.zeros_like(o) if g is None else g for g in (do, dto))
        # Expanded gradients (of a sum, say) have no unit inner stride.
        do, dto = (g if g.stride(-1) == 1 else g.contiguous() for g in (do, dto))
        grads = iter(_backward_op(q, k, v, tq, tk, tv, kv_lengths, o, to, lse, mu, do, dto, *ctx.options))
        six = [None if x is None else next(grads) for x in (q, k, v, tq, tk, tv)]
        return (None, *six, None, None, None, None)


def _forward_autograd(keyset, *args):
    _refuse_tangents(
        args,
        "the tangent of an input of dual_attention",
        "call scaled_dot_product_attention with the dual tensors, or unpack them and pass tq, tk, tv. "
        "Second derivatives in forward mode (a jvp inside a jvp) are not supported",
    )
    if _needs_grad(args):
        with enable_single_level_autograd_function():
            return _DualAttention.apply(keyset, *args)
    return _below_autograd(_forward_op, keyset, *args)


class _NoDoubleBackward(torch.autograd.function._SingleLevelFunction):
    @staticmethod
    def forward(ctx, keyset, *args):
        return tuple(_below_autograd(_backward_op, keyset, *args))

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(
            "dual attention has no double backward: its gradients cannot be differentiated again. "
            "Take the second derivative with plain PyTorch operators (softmax(q k^T) v) where it is needed"
        )


def _backward_autograd(keyset, *args):
    _refuse_tangents(
        args,
        "the tangent of a gradient of dual_attention",
        "forward mode over its backward (a jvp around a grad) is not supported; "
        "take the jvp inside and the gradient outside",
    )
    if _needs_grad(args):
        with enable_single_level_autograd_function():
            return list(_NoDoubleBackward.apply(keyset, *args))
    return _below_autograd(_backward_op, keyset, *args)


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
    *tensors, scale, causal, backend = args
    size = info.batch_size
    folded = [_fold(x, d, size) for x, d in zip(tensors, in_dims, strict=False)]
    outputs = _forward_op(*folded, scale, causal, backend)
    return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0,) * len(outputs)


def _backward_vmap(info, in_dims, *args):
    *tensors, scale, causal, backend = args
    size = info.batch_size
    folded = [_fold(x, d, size) for x, d in zip(tensors, in_dims, strict=False)]
    outputs = _backward_op(*folded, scale, causal, backend)
    return [x.unflatten(0, (size, -1)) for x in outputs], [0] * len(outputs)


torch.library.register_vmap("tvmatch::dual_attention", _forward_vmap, lib=_library)
torch.library.register_vmap("tvmatch::dual_attention_backward", _backward_vmap, lib=_library)


def dual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    *,
    scale: float | None = None,
    causal: bool = False,
    kv_lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention and its directional derivative in one fused pass, with one joint backward for all six inputs.

    With ``P = softmax(scale q k^T)``, ``tS = scale (tq k^T + q tk^T)`` and ``mu = rowsum(P * tS)``::

        o = P v            to = (P * (tS - mu)) v + P tv

    Args:
        q: [B, H, N_q, D] queries. k, v: [B, H, N_kv, D] keys and values. Any strides with inner stride 1.
        tq, tk, tv: tangents in the shapes of q, k, v; None where a tangent is zero, whose work is then skipped.
        scale: factor of the logits; default ``1 / sqrt(D)``.
        causal: query i sees keys 0..i (aligned at the start, like PyTorch's ``is_causal``).
        kv_lengths: [B] int32 or int64 on the device of q: sample b sees its first ``kv_lengths[b]`` keys.
        backend: "triton" (fused kernel), "reference" (exact PyTorch operators, any device and dtype), or "auto":
            the fused kernel where it applies, else the reference.

    Returns:
        o, to: [B, H, N_q, D], dtype and memory order of q.

    Raises:
        ValueError: shapes, dtypes, devices, strides, lengths or options that do not fit.
        RuntimeError: an input is a dual tensor itself (use `scaled_dot_product_attention`).
    """
    if torch.is_autocast_enabled(q.device.type):
        # As PyTorch's own attention does; float64 is left alone there too.
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v, tq, tk, tv = (
            x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v, tq, tk, tv)
        )
    check_inputs((q, k, v, tq, tk, tv), kv_lengths, scale)
    _check_backend(backend)
    if tq is None and tk is None and tv is None:
        raise ValueError("tq, tk and tv are all None: nothing to propagate; call scaled_dot_product_attention")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    o, to, _, _ = _forward_op(q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend)
    return o, to


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    kv_lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention for plain and for dual tensors.

    Plain tensors go to ``torch.nn.functional.scaled_dot_product_attention``. Where at least one of q, k, v carries a
    tangent (inside ``torch.autograd.forward_ad.dual_level`` or ``torch.func.jvp``), the pair goes to `dual_attention`
    and comes back as a dual tensor.

    Args:
        q: [B, H, N_q, D]. k, v: [B, H, N_kv, D].
        scale, causal, kv_lengths, backend: as in `dual_attention`; `backend` chooses for dual tensors only.

    Returns:
        [B, H, N_q, D]; a dual tensor where an input was one.
    """
    (q, tq), (k, tk), (v, tv) = (fwAD.unpack_dual(x) for x in (q, k, v))
    if not torch.compiler.is_compiling():
        # PyTorch's forward-mode rules mark some tangents as known zeros; their work can be skipped.
        tq, tk, tv = (None if t is not None and t._is_zerotensor() else t for t in (tq, tk, tv))
    if tq is not None or tk is not None or tv is not None:
        o, to = dual_attention(q, k, v, tq, tk, tv, scale=scale, causal=causal, kv_lengths=kv_lengths, backend=backend)
        return fwAD.make_dual(o, to)
    check_inputs((q, k, v, None, None, None), kv_lengths, scale)
    _check_backend(backend)
    if kv_lengths is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    visible = torch.arange(k.shape[2], device=q.device) < kv_lengths[:, None]
    visible = visible[:, None, None, :]
    if causal:
        order = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        visible = visible & order
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
