"""How runs are judged: by the sampler of their own objective, and by the same noise every time."""

from pathlib import Path

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
