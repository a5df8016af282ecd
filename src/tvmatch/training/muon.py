"""Muon: momentum whose matrices are made orthogonal before they are added (K. Jordan and others, 2024,
kellerjordan.github.io/posts/muon), with steps of AdamW's size (arXiv 2502.16982).

    m <- m + (1 - mu) (g - m)          u = g + mu (m - g)                         (Nesterov)
    p <- p - lr (weight decay p + 0.2 sqrt(max(rows, columns)) orthogonal(u))

orthogonal(u) is about U V^T for u = U S V^T: all directions of a matrix learn at one rate. The entries of such a matrix
[rows, columns] have a root mean square of 1 / sqrt(max(rows, columns)), those of a step so 0.2 lr, as AdamW's have: one
learning rate serves both.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values towards 1 (Jordan and others)
ITERATIONS = 5
STEP_SIZE = 0.2  # root mean square of a step over the learning rate (arXiv 2502.16982)


def orthogonal(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[K, rows, columns] -> about U V^T of each, by Newton-Schulz steps x <- a x + (b x x^T + c (x x^T)^2) x in `dtype`
    (default: that of the matrices). Singular values end between about 0.7 and 1.2, but those below a hundredth of the
    largest end lower; zero stays zero."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # the Frobenius norm is at least the spectral one; in float32, whose exponents do not end here
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)).to(dtype or x.dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices [rows, columns]; those of one shape take their step together.

    lr            learning rate; `momentum` mu in [0, 1); `weight_decay`, as AdamW's
    found_inf     a tensor that is 1 where a step must leave every bit as it was, as fused optimisers take it

    Products run in bfloat16 on a GPU, which the method allows for, and in the matrices' own dtype elsewhere.
    `ValueError` for parameters that are no matrices.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.dim() != 2:
                    raise ValueError(f"Muon is for matrices, got a parameter of shape {list(matrix.shape)}.")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure; compute the gradients before step().")
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[tuple(matrix.shape), matrix.device, matrix.dtype].append(matrix)
            for matrices in alike.values():
                self._step(matrices, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, matrices: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        kept = [self.state[matrix]["momentum"] for matrix in matrices]
        weight, gradient, before = (torch.stack(each) for each in (matrices, [m.grad for m in matrices], kept))
        mean = torch.lerp(before, gradient, 1 - momentum)
        dtype = torch.bfloat16 if weight.device.type == "cuda" else None
        update = orthogonal(torch.lerp(gradient, mean, momentum), dtype)
        size = STEP_SIZE * math.sqrt(max(weight.shape[1:]))
        after = torch.add(weight * (1 - lr * weight_decay), update, alpha=-lr * size)
        if self.found_inf is not None:
            skip = self.found_inf > 0
            mean, after = torch.where(skip, before, mean), torch.where(skip, weight, after)
        torch._foreach_copy_(kept, list(mean.unbind()))
        torch._foreach_copy_(matrices, list(after.unbind()))
