"""Input checks of dual attention: one ValueError each, naming the values and the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("q", "k", "v", "tq", "tk", "tv")


def check_inputs(tensors: tuple[Tensor | None, ...], kv_lengths: Tensor | None, scale: float | None) -> None:
    """Raise ValueError unless q, k, v (and the tangents that are given) form one attention problem.

    Args:
        tensors: (q, k, v, tq, tk, tv), the last three may be None.
        kv_lengths: [B] integer tensor or None.
        scale: factor of the logits or None.
    """
    q, k, v, *tangents = tensors
    for name, x in zip(NAMES, tensors, strict=True):
        if x is None:
            continue
        if x.dim() != 4:
            raise ValueError(f"{name} has shape {list(x.shape)}; it must be [batch, heads, tokens, head size]")
        if x.dtype != q.dtype or not x.dtype.is_floating_point:
            raise ValueError(f"{name} has dtype {x.dtype} and q has {q.dtype}; cast all inputs to one floating dtype")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} and q on {q.device}; move all inputs to one device")
        if x.numel() == 0:
            raise ValueError(f"{name} has shape {list(x.shape)}; every dimension must be at least 1")
        if x.shape[3] > 1 and x.stride(3) != 1:
            raise ValueError(
                f"{name} has strides {list(x.stride())}; the inner stride must be 1, call .contiguous() on it first"
            )
    if k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"k has shape {list(k.shape)} and q {list(q.shape)}; batch, heads and head size must be equal "
            "(expand the heads of k and v for grouped queries)"
        )
    if v.shape != k.shape:
        raise ValueError(f"v has shape {list(v.shape)} and k {list(k.shape)}; they must be equal")
    for name, x, t in zip(NAMES, (q, k, v), tangents, strict=False):
        if t is not None and t.shape != x.shape:
            raise ValueError(f"t{name} has shape {list(t.shape)} and {name} {list(x.shape)}; they must be equal")
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < float("inf")):
        raise ValueError(f"scale is {scale!r}; it must be a positive number (default: 1/sqrt(head size))")
    if kv_lengths is not None:
        if not isinstance(kv_lengths, Tensor):
            raise ValueError(f"kv_lengths is {kv_lengths!r}; it must be an integer tensor of shape [{q.shape[0]}]")
        if kv_lengths.shape != q.shape[:1] or kv_lengths.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"kv_lengths has shape {list(kv_lengths.shape)} and dtype {kv_lengths.dtype}; "
                f"it must be int32 or int64 of shape [{q.shape[0]}]"
            )
        if kv_lengths.device != q.device:
            raise ValueError(f"kv_lengths is on {kv_lengths.device} and q on {q.device}; move it there")


def check_length_values(kv_lengths: Tensor | None, n_kv: int) -> None:
    """Raise ValueError unless 1 <= kv_lengths <= N_kv. Reads the values: only for tensors that are free to read."""
    if kv_lengths is not None and not bool(((kv_lengths >= 1) & (kv_lengths <= n_kv)).all()):
        raise ValueError(f"kv_lengths is {kv_lengths.tolist()}; every sample needs between 1 and {n_kv} keys")
