"""How runs are judged: by the sampler of their own objective, and by the same noise every time."""

from pathlib import Path

import pytest
import torch

from tvmatch.ablation.tasks import judge
from tvmatch.flow_map import FlowMap
from tvmatch.networks.base import Network
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.training.trained import TrainedRun


def run_of(network: Network, objective: str) -> TrainedRun:
    return TrainedRun(FlowMap(network), ("even", "odd"), objective, "1:3", 1.5, 0, Path(), 0.0)


def test_points_of_fresh_noise_are_the_same_at_every_call() -> None:
    """Whatever torch's global stream has given before, and whatever else is judged with them."""
    network = MLP(MLPConfig(2, 2, hidden_size=8, depth=1, as_pictures=True))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    run = run_of(network, "consistency-training")
    torch.manual_seed(1)
    first = judge("points", Path(), run, (1, 2, 4), (1.5,), 20)
    torch.manual_seed(2)
    assert judge("points", Path(), run, (4,), (1.5,), 20) == first[2:]


@pytest.mark.parametrize("objective", ["terminal-velocity", "flow-matching", "consistency-training"])
def test_samples_that_are_not_finite_after_the_first_of_several_calls_give_no_figures(objective: str) -> None:
    """The second call refuses them, and an ablation went down with one run that had diverged."""
    network = MLP(MLPConfig(2, 2, hidden_size=8, depth=1, as_pictures=True))
    torch.nn.init.constant_(network.final.linear.bias, float("inf"))
    assert judge("points", Path(), run_of(network, objective), (1, 2, 4), (1.5,), 20) == []


class FiniteOnlyAt(Network):
    """F = 0 of velocities (s = t) alone, or of jumps alone, and NaN elsewhere."""

    def __init__(self, velocities: bool) -> None:
        super().__init__(2, (2, 1, 1))
        self.scale, self.velocities = torch.nn.Parameter(torch.zeros(())), velocities

    def forward(self, x, t, s, label, w):
        known = ((s == t) == self.velocities)[:, None, None, None]
        return torch.where(known, self.scale * x, float("nan"))


def test_samples_are_finite_or_not_by_the_sampler_that_draws_them() -> None:
    """Flow matching knows no jumps: what they give is no matter, and its Euler steps are."""
    (row,) = judge("points", Path(), run_of(FiniteOnlyAt(velocities=True), "flow-matching"), (2,), (1.5,), 20)
    assert row["w2"] > 0
    assert judge("points", Path(), run_of(FiniteOnlyAt(velocities=False), "flow-matching"), (2,), (1.5,), 20) == []
