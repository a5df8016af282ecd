"""The public functions: for six plain tensors, and for dual tensors."""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor

from tvmatch.kernels.tangents import unpack

from .checks import check_inputs, check_length_values
from .operator import forward_op

BACKENDS = ("auto", "triton", "reference")


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")


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
    q, k, v, tq, tk, tv = _autocast(q, k, v, tq, tk, tv)
    check_inputs((q, k, v, tq, tk, tv), kv_lengths, scale)
    _check_backend(backend)
    if tq is None and tk is None and tv is None:
        raise ValueError("tq, tk and tv are all None: nothing to propagate; call scaled_dot_product_attention")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    o, to, *_ = forward_op(q, k, v, tq, tk, tv, kv_lengths, scale, causal, backend)
    return o, to


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    kv_lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention for plain and for dual tensors, called as PyTorch's function of this name, and with `kv_lengths`.

    Plain tensors go to ``torch.nn.functional.scaled_dot_product_attention`` with all its arguments. Where at least one
    of q, k, v carries a tangent (inside ``torch.autograd.forward_ad.dual_level`` or ``torch.func.jvp``), the pair goes
    to `dual_attention` and comes back as a dual tensor.

    Args:
        q: [B, H, N_q, D]. k, v: [B, H, N_kv, D]; plain tensors may have any shapes that PyTorch's function takes.
        attn_mask, dropout_p: for plain tensors only, without `kv_lengths`.
        is_causal: PyTorch's name of `causal`, which is as in `dual_attention`; either of them is enough.
        enable_gqa: k and v may have fewer heads than q, each for a group of them.
        scale, kv_lengths, backend: as in `dual_attention`; `backend` chooses for dual tensors only.

    Returns:
        [B, H, N_q, D]; a dual tensor where an input was one.

    Raises:
        ValueError: `attn_mask` or `dropout_p` with dual tensors or with `kv_lengths`; for dual tensors and with
            `kv_lengths` also what `dual_attention` refuses.
    """
    causal = causal or is_causal
    (q, tq), (k, tk), (v, tv) = (unpack(x) for x in (q, k, v))
    if not torch.compiler.is_compiling():
        # PyTorch's forward-mode rules mark some tangents as known zeros; their work can be skipped.
        tq, tk, tv = (None if t is not None and t._is_zerotensor() else t for t in (tq, tk, tv))
    _check_backend(backend)
    dual = tq is not None or tk is not None or tv is not None
    if attn_mask is not None and not dual and unpack(attn_mask)[1] is not None:
        _refuse_mask_and_dropout(attn_mask, dropout_p, "a mask that is dual itself")
    if not dual and kv_lengths is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal=causal, scale=scale, enable_gqa=enable_gqa
        )
    _refuse_mask_and_dropout(attn_mask, dropout_p, "dual tensors" if dual else "kv_lengths")
    if enable_gqa:
        k, v, tk, tv = (_all_heads(x, q) for x in (k, v, tk, tv))
    if dual:
        q, k, v, tq, tk, tv = (_with_unit_stride(x) for x in (q, k, v, tq, tk, tv))
        o, to = dual_attention(q, k, v, tq, tk, tv, scale=scale, causal=causal, kv_lengths=kv_lengths, backend=backend)
        return fwAD.make_dual(o, to)
    q, k, v = _autocast(q, k, v)
    check_inputs((q, k, v, None, None, None), kv_lengths, scale)
    return _plain_with_lengths(q, k, v, kv_lengths, scale, causal)


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, cast as PyTorch's own attention does; float64 is left alone there too."""
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # which it cannot be asked for
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _plain_with_lengths(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None, causal: bool) -> Tensor:
    """PyTorch's attention to the first `lengths` [B] keys; what lies behind them may hold anything. A length that
    cannot be is an error where it can be read, and NaN where not, as in `dual_attention`."""
    traced = torch.compiler.is_compiling() or type(lengths) is not Tensor or torch._C._len_torch_dispatch_stack() > 0
    if q.device.type == "cpu" and not traced and not torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        check_length_values(lengths, k.shape[2])
    visible = torch.arange(k.shape[2], device=q.device) < lengths[:, None]
    k, v = (x.masked_fill(~visible[:, None, :, None], 0) for x in (k, v))
    mask = visible[:, None, None, :]
    if causal:
        mask = mask & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    possible = ((lengths >= 1) & (lengths <= k.shape[2]))[:, None, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).where(possible, float("nan"))


def _refuse_mask_and_dropout(attn_mask: Tensor | None, dropout_p: float, where: str) -> None:
    if attn_mask is not None:
        raise ValueError(
            f"attn_mask has shape {list(attn_mask.shape)}; with {where} attention can be masked by causal=True and "
            "kv_lengths only"
        )
    if dropout_p != 0:
        raise ValueError(f"dropout_p is {dropout_p}; with {where} it must be 0, drop what attention returns instead")


def _with_unit_stride(x: Tensor | None) -> Tensor | None:
    """A copy of what has heads or tokens innermost in memory: PyTorch's attention takes that too."""
    return x if x is None or x.dim() != 4 or x.shape[3] <= 1 or x.stride(3) == 1 else x.contiguous()


def _all_heads(x: Tensor | None, q: Tensor) -> Tensor | None:
    """k, v or a tangent of them with as many heads as q, each repeated for its group."""
    if x is None or x.dim() != 4 or q.dim() != 4 or x.shape[1] == q.shape[1]:
        return x
    if x.shape[1] == 0 or q.shape[1] % x.shape[1] != 0:
        raise ValueError(f"q has {q.shape[1]} heads and k or v {x.shape[1]}; grouped queries need a multiple")
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)
