"""Steps that are skipped because their loss or gradient is not finite: decided on the device, alike on all ranks.

A skipped step has consumed its batch and its random draws, and leaves weights, optimiser and averages bit for bit as
they were. Neither the decision nor the count makes the host wait.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class SkippedSteps:
    """Counts skipped steps: in all, in a row until now, and in the longest row since `forget`. int64, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.total, self.in_a_row, self.longest = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))

    @torch.no_grad()
    def decide(self, figures: Tensor, shared: bool = False) -> Tensor:
        """1 (float32, on the device) if one of this step's figures is not finite, else 0, and count it. `shared`: on
        any rank of the process group.

        This is what fused optimisers take as `found_inf` and `move_towards` as `skip`.
        """
        skip = 1 - figures.isfinite().all().float()
        if shared:
            dist.all_reduce(skip, dist.ReduceOp.MAX)
        one = skip.long()
        self.total += one
        self.in_a_row.add_(one).mul_(one)
        torch.maximum(self.longest, self.in_a_row, out=self.longest)
        return skip

    def forget(self) -> None:
        """Begin a new search for the longest row, with the one that goes on now."""
        self.longest.copy_(self.in_a_row)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"skipped.total": self.total, "skipped.in_a_row": self.in_a_row}
