"""Checks of what users pass in: one clear error that names the value and what would be right.

Values on a CPU are compared at once. On a GPU that would wait for the device, so the same conditions become
asynchronous device asserts, which end the process; inside `torch.compile` and under torch.func transforms, where values
cannot be read, only shapes and dtypes are checked.
"""

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

TIME_TOLERANCE = 1e-6


class NotFiniteError(ValueError):
    """Data that holds NaN or infinity."""


def _require(condition: Tensor, message: str, culprit: Tensor, error: type[ValueError] = ValueError) -> None:
    if torch.compiler.is_compiling() or is_functorch_wrapped_tensor(condition):
        return
    if condition.device.type == "cpu":
        if not bool(condition.all()):
            bad = culprit[~condition.expand_as(culprit)].flatten()
            raise error(f"{message} Got {bad[:5].tolist()}{' ...' if len(bad) > 5 else ''}.")
    else:
        torch._assert_async(condition.all(), message)


def _require_vector(value: Tensor, batch: int, name: str) -> None:
    if value.shape != (batch,):
        raise ValueError(f"{name} must have shape [{batch}], one for each sample; got {list(value.shape)}.")


def _require_floating(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"data must be floating point (pictures scaled to [-1, 1]), got {x.dtype}.")


def check_times(t: Tensor, s: Tensor, batch: int) -> None:
    """Raise unless 1 >= t >= s >= 0, both of shape [batch]."""
    _require_vector(t, batch, "t")
    _require_vector(s, batch, "s")
    for name, value in (("t", t), ("s", s)):
        if not value.is_floating_point():
            raise ValueError(f"time {name} must be floating point, got {value.dtype}.")
        inside = (value >= -TIME_TOLERANCE) & (value <= 1 + TIME_TOLERANCE)
        _require(inside, f"time {name} must lie in [0, 1] (0 is data, 1 is noise).", value)
    _require(s <= t + TIME_TOLERANCE, "a jump goes down from t to s, so s must be at most t.", s)


def check_guidance(w: Tensor, batch: int) -> None:
    """Raise unless w is positive, finite and of shape [batch]."""
    _require_vector(w, batch, "w")
    _require((w > 0) & w.isfinite(), "the guidance scale w must be positive and finite (1 is no guidance).", w)


def check_labels(label: Tensor, num_classes: int, batch: int) -> None:
    """Raise unless `label` holds integers from -1 (the null class) to num_classes - 1, of shape [batch]."""
    if label.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels must be integers (torch.int64), got {label.dtype}.")
    _require_vector(label, batch, "label")
    allowed = f"-1 (no class) to {num_classes - 1}" if num_classes else "-1 (the network is unconditional)"
    _require((label >= -1) & (label < num_classes), f"labels must be {allowed}.", label)


def check_data(x: Tensor, data_shape: tuple[int, ...]) -> None:
    """Raise unless x is a floating-point batch [B, *data_shape] of finite numbers (else `NotFiniteError`)."""
    if x.dim() != 1 + len(data_shape) or tuple(x.shape[1:]) != tuple(data_shape):
        raise ValueError(f"data must have shape [B, {', '.join(map(str, data_shape))}], got {list(x.shape)}.")
    _require_floating(x)
    _require(x.isfinite(), "data must be finite, but it holds NaN or infinity.", x, NotFiniteError)


def check_output(output: Tensor, x: Tensor, network: str) -> None:
    """Raise unless a network answered in the shape of its data: another one would be broadcast without a word."""
    if output.shape != x.shape:
        raise ValueError(
            f"{network} must return the shape of its data, {list(x.shape)}; it returned {list(output.shape)}."
        )


def check_batch(x0: Tensor, label: Tensor) -> None:
    """Raise unless x0 [B, ...] is floating point and label has one number for each of its B > 0 samples."""
    _require_floating(x0)
    if len(x0) == 0:
        raise ValueError("the batch is empty.")
    _require_vector(label, len(x0), "label")
