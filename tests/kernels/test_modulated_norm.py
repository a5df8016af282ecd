"""What the fused norm keeps for its backward, and how its programs share the rows."""

import pytest
import torch

from tvmatch.kernels import modulated_norm
from tvmatch.kernels.modulated_norm import op

EPS = 1e-6


def test_a_wide_sum_of_a_plain_pass_is_not_kept() -> None:
    """In its place lies the stream before it, which the norm before has kept too."""
    for size, kept in ((1024, True), (512, False)):
        x, update = torch.randn(1, 2, size, requires_grad=True), torch.randn(1, 2, size)
        rows = [torch.randn(1, 1, size) for _ in range(3)]
        saved: list[int] = []  # filled below
        with torch.autograd.graph.saved_tensors_hooks(
            lambda part, saved=saved: saved.append(part.data_ptr()) or part, lambda p: p
        ):
            y, _ = modulated_norm.add_norm_modulate((x, *rows, update), (), EPS, torch.float32, again=True)
        assert (x.data_ptr() in saved) == kept
        assert (y.data_ptr() in saved) == (not kept)


@pytest.mark.parametrize(
    ("batch", "tokens", "forward", "backward"),
    [(64, 256, 4, 16), (128, 256, 8, 32), (1024, 64, 16, 64), (4096, 64, 64, 64), (1, 7, 4, 16)],
)
def test_rows_of_a_program(batch: int, tokens: int, forward: int, backward: int) -> None:
    """XL/2 at batch 64 keeps the rows that were measured for it; of more samples a program takes more rows, in the
    backward of DiT-S/4 at batch 1024 a whole sample."""
    assert op._rows_of_a_program(op.FORWARD_ROWS, op.FORWARD_PROGRAMS, batch, tokens) == forward
    assert op._backward_rows(batch, tokens) == backward
