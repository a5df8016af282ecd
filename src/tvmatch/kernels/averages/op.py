"""Several moving averages of a list of weights in one pass over memory, or PyTorch's own fused steps, one for each."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from tvmatch.kernels.elementwise import launches_triton

MOST = 4  # averages of one launch


@torch.no_grad()
def move_averages(
    weights: Sequence[Tensor], averages: Sequence[Sequence[Tensor]], shares: Sequence[float], skip: Tensor | None = None
) -> None:
    """average <- average + share (weight - average), in place, for every list of `averages` and its share in [0, 1].

    Args:
        weights: any tensors; each list of `averages` has as many, of the same shapes, dtypes and device.
        shares: one for each list; 1 copies, 0 leaves every bit.
        skip: a float32 number on the device: where it is 1, no bit changes. The host need not know.
    """
    for tensors in averages:
        if [a.shape for a in tensors] != [w.shape for w in weights]:
            raise ValueError("every average must have as many tensors as there are weights, of the same shapes.")
    if len(shares) != len(averages):
        raise ValueError(f"{len(averages)} averages need as many shares, got {len(shares)}.")
    if all(applies(tensor) for tensors in (weights, *averages) for tensor in tensors):
        for first in range(0, len(averages), MOST):
            _launch(weights, averages[first : first + MOST], shares[first : first + MOST], skip)
    elif skip is None:
        moving = [tensor for tensors in averages for tensor in tensors]
        torch._foreach_lerp_(moving, [*weights] * len(averages), [share for share in shares for _ in weights])
    else:
        for tensors, share in zip(averages, shares, strict=True):
            _move_unless(tensors, weights, share, skip)


def applies(tensor: Tensor) -> bool:
    """Whether the fused kernel takes this tensor: on a GPU with Triton, float32, in one piece."""
    return launches_triton(tensor) and tensor.dtype == torch.float32 and tensor.is_contiguous()


def _move_unless(averages: Sequence[Tensor], weights: Sequence[Tensor], share: float, skip: Tensor) -> None:
    """An average is a step of gradient descent, x <- x + share (weight - x): weight is the gradient, -1 the weight
    decay, -share the learning rate. PyTorch's fused step is one kernel for all weights and looks at `found_inf` on the
    device. Its rounding leaves some 1e-7 of a large x at share 1, which a second step takes away: then it is a copy."""
    for _ in range(2 if share == 1 else 1):
        torch._fused_sgd_(
            list(averages),
            list(weights),
            [],
            weight_decay=-1.0,
            momentum=0.0,
            lr=-share,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=skip,
        )


def _launch(
    weights: Sequence[Tensor], averages: Sequence[Sequence[Tensor]], shares: Sequence[float], skip: Tensor | None
) -> None:
    from .triton import BLOCK, move_kernel

    pointers = tuple(tensor.data_ptr() for tensors in (weights, *averages) for tensor in tensors)
    sizes = tuple(weight.numel() for weight in weights)
    table, blocks, lengths = _tables(pointers, sizes, weights[0].device, BLOCK)
    four = [float(share) for share in shares] + [0.0] * (MOST - len(shares))
    with torch.cuda.device_of(weights[0]):
        move_kernel[(len(blocks),)](
            table, blocks, lengths, table if skip is None else skip, *four,
            COUNT=len(averages), SKIPS=skip is not None, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
    # a kernel of our own does not tell autograd that it has written
    torch.autograd.graph.increment_version([tensor for tensors in averages for tensor in tensors])


@functools.lru_cache(maxsize=8)
def _tables(
    pointers: tuple[int, ...], sizes: tuple[int, ...], device: torch.device, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Addresses [tensors, 1 + averages], (tensor, part) of each program, and sizes: the same from step to step."""
    table = torch.tensor(pointers, dtype=torch.int64).view(-1, len(sizes)).T.contiguous()
    blocks = [(tensor, part) for tensor, size in enumerate(sizes) for part in range(-(-size // block))]
    return (
        table.to(device),
        torch.tensor(blocks, dtype=torch.int32).view(-1, 2).to(device),
        torch.tensor(sizes, dtype=torch.int64).to(device),
    )
