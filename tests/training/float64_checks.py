"""A step's gradient in float64 on each rank, where nothing but rounding of 1e-16 hides a wrong one."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.training.rank_checks import SOURCE, whole
from tvmatch.training import loop
from tvmatch.training.config import TrainConfig
from tvmatch.training.ranks import join_ranks
from tvmatch.training.schedule import Schedule


def fill(module: nn.Module, generator: torch.Generator) -> None:
    """The same random numbers in every parameter, whole or sharded: no derivative is zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            value = 0.3 * torch.randn(parameter.shape, generator=generator).abs()
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def gradient(config: TrainConfig) -> dict[str, Any]:
    """Loss and gradient of the loop's first step, weights, data and draws in float64."""
    before, in_range = torch.get_default_dtype(), loop.to_network_range
    with pytest.MonkeyPatch.context() as patch, join_ranks(config.strategy, config.device) as ranks:
        patch.setattr(loop, "to_network_range", lambda images: in_range(images).double())
        try:
            torch.set_default_dtype(torch.float64)
            loop.check_shares(config, ranks.count)
            state, header, module = loop.prepare(config, SOURCE, ranks)
            generator = torch.Generator().manual_seed(0)
            fill(state.objective.flow, generator)
            fill(state.objective.target, generator)
            run = loop._Run(config, SOURCE, state, header, module, ranks, Schedule(config), False)
            indices = run.stream.indices(0)
            run.backward(torch.from_numpy(SOURCE.batch(indices)), torch.from_numpy(SOURCE.labels[indices]))
            run.instruments.decide(torch.tensor(0.0), 0)
            named = state.objective.flow.named_parameters()
            return {
                "loss": run.instruments.read().figures["loss"],
                "gradients": {name: whole(parameter.grad) for name, parameter in named},
            }
        finally:
            torch.set_default_dtype(before)
