"""What every objective does before its own work: the batch that it is given, and its random draws."""

import pickle

import pytest
import torch

from tvmatch.flow_map import FlowMap
from tvmatch.objectives import FlowMatching, MeanFlow, TerminalVelocityMatching


def test_the_usual_mistakes_are_named(flow: FlowMap) -> None:
    for objective in (TerminalVelocityMatching(flow), MeanFlow(flow), FlowMatching(flow)):
        x0, label = torch.randn(4, 2, 4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"data must be floating point .* got torch.uint8"):
            objective(x0.to(torch.uint8), label)
        with pytest.raises(ValueError, match=r"label must have shape \[4\], one for each sample; got \[2\]"):
            objective(x0, label[:2])
        with pytest.raises(ValueError, match="the batch is empty"):
            objective(x0[:0], label[:0])
        with pytest.raises(ValueError, match="the batch is empty"):
            objective(x0=x0[:0], label=label[:0])


def test_draws_follow_torchs_seed_until_one_is_given(flow: FlowMap) -> None:
    losses = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        objective = FlowMatching(flow)
        losses.append(float(objective(torch.ones(4, 2, 4, 4).double(), torch.zeros(4, dtype=torch.int64)).loss))
    assert losses[0] == losses[2] != losses[1]
    pickle.loads(pickle.dumps(objective))  # by whatever starts processes; nothing of ours reads a pickle
