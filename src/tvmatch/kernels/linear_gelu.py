"""GELU inside the matrix product before it, where no gradient will ask for what lies between."""

import torch
from torch import Tensor
from torch.nn import functional


@torch.library.custom_op("tvmatch::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(x W^T + b) in its tanh approximation, x [..., in], without gradients; on a GPU the matrix product applies it
    to what it writes.

    An operator of its own, because the compiler would take the two apart again.
    """
    if not x.is_cuda:
        return functional.gelu(functional.linear(x, weight, bias), approximate="tanh")
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True)
    return rows.view(*x.shape[:-1], len(bias))


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(bias))


def applies(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a layer should call it: nothing records gradients here, on a GPU in 16 bits, outside torch.func
    transforms. The caller sees to tangents."""
    return (
        x.is_cuda
        and dtype in (torch.bfloat16, torch.float16)
        and not torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
    )
