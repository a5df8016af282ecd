"""Exact dual attention in plain PyTorch operators: any device, any dtype, memory linear in the sequence length.

This is the product's CPU path and the yardstick of the fused kernel. Rows of the score matrix are handled a chunk at a
time with all their keys, so that the softmax of a row is computed in one piece (no running rescaling) and the
temporaries stay below a fixed size whatever the sequence length. The backward is the joint one of
``docs/kernel.md``, not autograd through the chunks.

Half-precision inputs are computed in float32; float32 and float64 in themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .rest import empty_rest, fill_rest, restored

# Score elements per chunk: six live [rows, keys] temporaries of 2^20 elements are 24 MiB in float32, about a last-level
# cache; larger chunks ran slower on CPUs, smaller ones pay more operator calls.
_CHUNK_ELEMENTS = 1 << 20


def _flatten(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """[B, H, N, D] -> [B*H, N, D] in the computing dtype."""
    return None if x is None else x.reshape(-1, x.shape[-2], x.shape[-1]).to(dtype)


def _chunks(batch: int, rows: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Slices (of B*H, of queries) whose score matrices hold at most about `_CHUNK_ELEMENTS` elements."""
    row_step = min(rows, max(1, _CHUNK_ELEMENTS // max(1, keys)))
    batch_step = max(1, _CHUNK_ELEMENTS // (row_step * keys)) if row_step == rows else 1
    for b in range(0, batch, batch_step):
        for r in range(0, rows, row_step):
            yield slice(b, b + batch_step), slice(r, r + row_step)


def _mask(
    rows: slice, n_q: int, n_kv: int, lengths: Tensor | None, causal: bool, device: torch.device
) -> Tensor | None:
    """True where a key must not be seen, [1 or b, 1 or rows, N_kv], or None. Causal: query i sees keys j <= i."""
    if lengths is None and not causal:
        return None
    keys = torch.arange(n_kv, device=device)
    hidden = None
    if causal:
        queries = torch.arange(n_q, device=device)[rows]
        hidden = (keys[None, :] > queries[:, None])[None]
    if lengths is not None:
        padding = (keys[None, :] >= lengths[:, None])[:, None, :]
        hidden = padding if hidden is None else hidden | padding
    return hidden


def _clear_padding(x: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Zero the padded keys: their probability is zero, but zero times the NaN that padding may hold is NaN."""
    if x is None or lengths is None:
        return x
    padding = torch.arange(x.shape[1], device=x.device)[None, :] >= lengths[:, None]
    return x.masked_fill(padding[:, :, None], 0.0)


def _score_tangent(q: Tensor, kT: Tensor, tq: Tensor | None, tkT: Tensor | None, scale: float) -> Tensor | None:
    """tS = scale (tq k^T + q tk^T), or None where neither q nor k has a tangent."""
    ts = None
    if tq is not None:
        ts = torch.baddbmm(tq.new_empty(()), tq, kT, beta=0, alpha=scale)
    if tkT is not None:
        ts = torch.baddbmm(q.new_empty(()) if ts is None else ts, q, tkT, beta=0 if ts is None else 1, alpha=scale)
    return ts


def _expand_lengths(lengths: Tensor | None, heads: int) -> Tensor | None:
    return None if lengths is None else lengths.repeat_interleave(heads)


def _like(flat: Tensor, model: Tensor) -> Tensor:
    """[B*H, N, D] in the computing dtype -> the model tensor's shape, dtype and memory order."""
    out = flat.view(model.shape)
    if model.is_contiguous():
        return out.to(model.dtype)
    return torch.empty_like(model).copy_(out)


def dual_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    kv_lengths: Tensor | None,
    scale: float,
    causal: bool,
    keep_rest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attention and its directional derivative.

    Equations::

        S = scale q k^T         P = softmax(S)       tS = scale (tq k^T + q tk^T)
        mu = rowsum(P * tS)     o = P v              to = (P * (tS - mu)) v + P tv

    Args:
        q, tq: [B, H, N_q, D]. k, v, tk, tv: [B, H, N_kv, D]. A tangent that is None is zero and costs nothing.
        kv_lengths: [B] number of keys each sample sees, or None for all.
        scale: factor of the logits.
        causal: query i sees keys 0..i (aligned at the start, like PyTorch's ``is_causal``).
        keep_rest: keep what rounding o and to to 16 bits drops, for an exact backward.

    Returns:
        o, to [B, H, N_q, D] in the dtype of q; logsumexp of the logits (natural logarithm) and mu, [B, H, N_q], in the
        computing dtype (float64 for float64, else float32); the rest of ``rest.py``.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    B, H, n_q, _ = q.shape
    n_kv = k.shape[2]
    lengths = _expand_lengths(kv_lengths, H)
    fq, ftq = _flatten(q, dtype), _flatten(tq, dtype)
    fk, fv, ftk, ftv = (_clear_padding(_flatten(x, dtype), lengths) for x in (k, v, tk, tv))

    def one(b: slice, r: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kT, qb, vb = fk[b].mT, fq[b, r], fv[b]
        s = torch.baddbmm(qb.new_empty(()), qb, kT, beta=0, alpha=scale)
        hidden = _mask(r, n_q, n_kv, None if lengths is None else lengths[b], causal, q.device)
        if hidden is not None:
            s.masked_fill_(hidden, float("-inf"))
        lse = torch.logsumexp(s, -1, keepdim=True)
        p = s.sub_(lse).exp_()
        o = torch.bmm(p, vb)
        ts = _score_tangent(qb, kT, None if ftq is None else ftq[b, r], None if ftk is None else ftk[b].mT, scale)
        to = None
        if ts is None:
            mu = torch.zeros_like(lse)
        else:
            if hidden is not None:
                ts.masked_fill_(hidden, 0.0)
            mu = (p * ts).sum(-1, keepdim=True)
            to = torch.bmm(ts.sub_(mu).mul_(p), vb)
        if ftv is not None:
            to = torch.bmm(p, ftv[b]) if to is None else to.baddbmm_(p, ftv[b])
        return o, torch.zeros_like(o) if to is None else to, lse.squeeze(-1), mu.squeeze(-1)

    slices = list(_chunks(B * H, n_q, n_kv))
    if len(slices) == 1:
        o, to, lse, mu = one(*slices[0])
    else:
        o, to = fq.new_empty(fq.shape), fq.new_empty(fq.shape)
        lse, mu = fq.new_empty(fq.shape[:2]), fq.new_empty(fq.shape[:2])
        for b, r in slices:
            o[b, r], to[b, r], lse[b, r], mu[b, r] = one(b, r)
    rounded = _like(o, q), _like(to, q)
    rest = empty_rest(rounded[0], keep_rest)
    fill_rest(rest, (o, to), rounded)
    return *rounded, lse.view(B, H, n_q), mu.view(B, H, n_q), rest


def dual_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    kv_lengths: Tensor | None,
    o: Tensor,
    to: Tensor,
    lse: Tensor,
    mu: Tensor,
    rest: Tensor,
    do: Tensor,
    dto: Tensor,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``<do, o> + <dto, to>`` by all inputs, in one pass over the scores.

    Equations, with ``B = tS - mu`` and ``tP = P * B``::

        d1 = rowsum(dto * o)               d2 = rowsum(do * o) + rowsum(dto * to)
        C = dto v^T - d1                   dtS = P * C          dS = P * (do v^T + dto tv^T - d2 + B * C)
        dv = P^T do + tP^T dto             dtv = P^T dto
        dq = scale (dS k + dtS tk)         dtq = scale dtS k
        dk = scale (dS^T q + dtS^T tq)     dtk = scale dtS^T q

    Returns:
        dq, dk, dv, dtq, dtk, dtv in the shapes of the inputs; None where the tangent is None.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    B, H, n_q, _ = q.shape
    n_kv = k.shape[2]
    lengths = _expand_lengths(kv_lengths, H)
    fq, ftq, fo, fto, fdo, fdto = (_flatten(x, dtype) for x in (q, tq, *restored(o, to, rest, dtype), do, dto))
    fk, fv, ftk, ftv = (_clear_padding(_flatten(x, dtype), lengths) for x in (k, v, tk, tv))
    flse, fmu = lse.reshape(B * H, n_q, 1), mu.reshape(B * H, n_q, 1)
    d1 = (fdto * fo).sum(-1, keepdim=True)
    d2 = (fdo * fo).sum(-1, keepdim=True).add_((fdto * fto).sum(-1, keepdim=True))
    scores_move = tq is not None or tk is not None

    def one(b: slice, r: slice) -> tuple[Tensor | None, ...]:
        qb, kb, dob, dtob = fq[b, r], fk[b], fdo[b, r], fdto[b, r]
        kT, vT = kb.mT, fv[b].mT
        tqb = None if ftq is None else ftq[b, r]
        tkb = None if ftk is None else ftk[b]
        s = torch.baddbmm(qb.new_empty(()), qb, kT, beta=0, alpha=scale)
        hidden = _mask(r, n_q, n_kv, None if lengths is None else lengths[b], causal, q.device)
        if hidden is not None:
            s.masked_fill_(hidden, float("-inf"))
        p = s.sub_(flse[b, r]).exp_()
        ds = torch.bmm(dob, vT)
        if ftv is not None:
            ds.baddbmm_(dtob, ftv[b].mT)
        ds.sub_(d2[b, r])
        dv = torch.bmm(p.mT, dob)
        dtv = None if ftv is None else torch.bmm(p.mT, dtob)
        dtq = dtk = None
        if not scores_move:
            ds.mul_(p)
            dq = torch.baddbmm(qb.new_empty(()), ds, kb, beta=0, alpha=scale)
            dk = torch.baddbmm(qb.new_empty(()), ds.mT, qb, beta=0, alpha=scale)
            return dq, dk, dv, dtq, dtk, dtv
        b_ = _score_tangent(qb, kT, tqb, None if tkb is None else tkb.mT, scale).sub_(fmu[b, r])
        if hidden is not None:
            b_.masked_fill_(hidden, 0.0)
        c = torch.bmm(dtob, vT).sub_(d1[b, r])
        ds.addcmul_(b_, c).mul_(p)
        dts = c.mul_(p)
        dv.baddbmm_(b_.mul_(p).mT, dtob)
        dq = torch.baddbmm(qb.new_empty(()), ds, kb, beta=0, alpha=scale)
        dk = torch.baddbmm(qb.new_empty(()), ds.mT, qb, beta=0, alpha=scale)
        if tkb is not None:
            dq.baddbmm_(dts, tkb, alpha=scale)
            dtk = torch.baddbmm(qb.new_empty(()), dts.mT, qb, beta=0, alpha=scale)
        if tqb is not None:
            dk.baddbmm_(dts.mT, tqb, alpha=scale)
            dtq = torch.baddbmm(qb.new_empty(()), dts, kb, beta=0, alpha=scale)
        return dq, dk, dv, dtq, dtk, dtv

    inputs = (q, k, v, tq, tk, tv)
    slices = list(_chunks(B * H, n_q, n_kv))
    if len(slices) == 1:
        flat = one(*slices[0])
    else:
        flat = tuple(None if x is None else fq.new_zeros((B * H, *x.shape[2:])) for x in inputs)
        for b, r in slices:
            for i, part in enumerate(one(b, r)):
                if part is not None:
                    # Query gradients own their rows; key gradients add up over the chunks of queries.
                    flat[i][b, r if i in (0, 3) else slice(None)] += part
    return tuple(None if x is None else _like(g, x) for g, x in zip(flat, inputs, strict=True))
