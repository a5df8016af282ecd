"""The sum of 16-bit gradients in float32."""

import pytest
import torch
from torch import Tensor

from tvmatch.kernels import gradient_sum
from tvmatch.kernels.gradient_sum import op


def parts_of(count: int, device: str = "cpu") -> list[Tensor]:
    return [torch.randn(45, 70, device=device).mul(10**number).bfloat16() for number in range(count)]


def test_sums_of_a_cpu_round_nothing_to_16_bits() -> None:
    parts = parts_of(3)
    assert torch.equal(gradient_sum.gradient_sum(parts, torch.float32), sum(part.float() for part in parts))
    assert not torch.equal(gradient_sum.gradient_sum(parts, torch.float32), (parts[0] + parts[1]).float() + parts[2])
    kept = parts[0].float()
    total = gradient_sum.gradient_sum([kept, kept], torch.float32)
    assert torch.equal(kept, parts[0].float()), "a part was written to"
    assert torch.equal(total, 2 * kept)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_kernel_adds_all_parts(count: int) -> None:
    """In Triton's interpreter, in float32: the numbers are those of bfloat16."""
    parts = [part.float() for part in parts_of(count)]
    assert torch.equal(op._launch(parts), sum(parts))


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_gradient_sum_on_a_gpu(count: int) -> None:
    parts = parts_of(count, "cuda")
    assert op.applies(parts, torch.float32) == (count <= op.MOST)
    assert torch.equal(gradient_sum.gradient_sum(parts, torch.float32), sum(part.float() for part in parts))
    strided = [torch.randn(70, 45, device="cuda").bfloat16().T for _ in range(2)]
    assert not op.applies(strided, torch.float32)
    assert torch.equal(gradient_sum.gradient_sum(strided, torch.float32), sum(part.float() for part in strided))
