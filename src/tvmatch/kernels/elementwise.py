"""What the fused elementwise operators share: where they run, how a row is cut, how they are defined."""

import importlib.util
import os
from collections.abc import Callable

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


_libraries: list[torch.library.Library] = []  # what they define is gone with them


def define_operators(**operators: tuple[str, Callable[..., object], Callable[..., object]]) -> None:
    """`torch.ops.tvmatch.NAME` from NAME=(arguments and results as in a schema, what it does, what it gives in shapes).

    They have no autograd of their own and are called inside a Function that differentiates them once.
    """
    library = torch.library.Library("tvmatch", "FRAGMENT")
    _libraries.append(library)
    for name, (schema, real, fake) in operators.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, real, "CompositeExplicitAutograd")
        torch.library.register_fake(f"tvmatch::{name}", fake, lib=library)
        torch.library.register_autograd(f"tvmatch::{name}", _refuse_double_backward, lib=library)


def _refuse_double_backward(context: object, *gradients: object) -> None:
    raise NotImplementedError(
        "the fused layers have no double backward: their gradients cannot be differentiated again. Set "
        "TVMATCH_FUSED_LAYERS=0 for PyTorch's own operations where second derivatives are needed."
    )
