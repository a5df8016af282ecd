"""The optimiser that a configuration names, and what a checkpoint keeps of it."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from tvmatch.objectives import Objective
from tvmatch.training.config import TrainConfig
from tvmatch.training.muon import Muon

ADAMW_SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for every parameter
MUON_SLOTS = ("momentum",)


class Together:
    """Several optimisers of different parameters as one: one list of groups, one state, one step."""

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        self.members = members
        self.found_inf: Tensor | None = None  # 1 where a step must change nothing
        self.state: defaultdict[Tensor, dict[str, Any]] = members[0].state
        for member in members[1:]:  # by parameter, and no parameter is of two
            member.state = self.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for member in self.members for group in member.param_groups]

    def step(self) -> None:
        for member in self.members:
            member.found_inf = self.found_inf
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)


Optimizer = torch.optim.Optimizer | Together


def build_optimizer(config: TrainConfig, objective: Objective) -> Optimizer:
    """AdamW for everything; or, where the configuration says so, Muon for the matrices of the network's blocks and
    AdamW for the rest. `objective.trained()` are this rank's shards by now."""
    trained = objective.trained()
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    matrices = {name for name, value in trained.items() if config.optimizer == "muon" and is_block_matrix(name, value)}
    if config.optimizer == "muon" and not matrices:
        raise ValueError(
            f"optimizer muon is for the matrices of equal blocks, and {config.network} has none; use adamw."
        )
    others = [value for name, value in trained.items() if name not in matrices]
    adamw = torch.optim.AdamW(others, betas=(config.beta1, config.beta2), fused=True, **options)
    if not matrices:
        return adamw
    return Together(adamw, Muon([trained[name] for name in trained if name in matrices], **options))


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon is meant for it: a weight of a block's linear layer. Embeddings and what comes before and after the
    blocks, whose rows or columns are single inputs and outputs, stay with AdamW (Jordan and others)."""
    return ".blocks." in f".{name}" and parameter.dim() == 2


def slots(optimizer: Optimizer) -> dict[Tensor, tuple[str, ...]]:
    """What is kept for each parameter after its first step, by name."""
    members = optimizer.members if isinstance(optimizer, Together) else (optimizer,)
    return {
        parameter: MUON_SLOTS if isinstance(member, Muon) else ADAMW_SLOTS
        for member in members
        for group in member.param_groups
        for parameter in group["params"]
    }
