"""What every objective does before its own work: the batch that it is given, and its random draws."""

import pickle

import pytest
import torch

from tests.objectives.test_parts import METHODS
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance, UniformGuidance
from tvmatch.objectives import FlowMatching, InductiveMomentMatching, MeanFlow, Objective, TerminalVelocityMatching


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


@pytest.mark.parametrize("overflow", [float("inf"), float("nan")])
@pytest.mark.parametrize("guidance", [FixedGuidance(), UniformGuidance()], ids=["w = 1", "guided"])
@pytest.mark.parametrize("method", [*METHODS, InductiveMomentMatching])
def test_a_network_that_overflows_gives_a_loss_that_is_not_finite(
    flow: FlowMap, method: type[Objective], guidance: UniformGuidance | FixedGuidance, overflow: float
) -> None:
    """And no complaint about the data: the trainer skips such steps and counts them."""
    with torch.no_grad():
        flow.network.final.linear.bias[0] = overflow
    objective = method(flow, guidance=guidance)
    objective.seed(0)
    loss = objective(torch.randn(8, 2, 4, 4).double(), torch.arange(8) // 4).loss
    assert not bool(loss.isfinite())
