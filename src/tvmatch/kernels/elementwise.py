"""What the fused elementwise operators share: where they run, how a row is cut, and a loud end to double backward."""

import importlib.util
import os
from collections.abc import Iterable

import torch
from torch import Tensor

ENABLED = os.environ.get("TVMATCH_FUSED_LAYERS", "1") != "0"  # "0": PyTorch's own operations everywhere
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def launches_triton(x: Tensor) -> bool:
    """Whether fused elementwise kernels run on this tensor: on a GPU with Triton, in float32 or 16 bits, outside
    torch.func transforms (whose tangents they would not see)."""
    return (
        ENABLED
        and HAS_TRITON
        and x.is_cuda
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not torch._C._are_functorch_transforms_active()
    )


def two_parts(size: int) -> tuple[int, int]:
    """A width as two powers of two, (1024, 128) for 1152, the second 0 or at least 16 and possibly padded."""
    head = 1 << (size.bit_length() - 1)
    rest = size - head
    tail = 0 if rest == 0 else max(16, 1 << (rest - 1).bit_length())
    return (2 * head, 0) if tail >= head else (head, tail)


def refuse_double_backward(library: torch.library.Library, names: Iterable[str]) -> None:
    """Let the gradient of these operators raise: they are called inside a Function that differentiates them once."""

    def backward(context: object, *gradients: object) -> None:
        raise NotImplementedError(
            "the fused layers have no double backward: their gradients cannot be differentiated again. Set "
            "TVMATCH_FUSED_LAYERS=0 for PyTorch's own operations where second derivatives are needed."
        )

    for name in names:
        torch.library.register_autograd(f"tvmatch::{name}", backward, lib=library)
