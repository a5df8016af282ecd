"""What the loop asks of a step on a GPU: skipping without a word to the host (make test-gpu)."""

import copy

import pytest
import torch
from torch import Tensor

from tests.conftest import randomise
from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.training.ema import EvaluationEma, move_towards
from tvmatch.training.instruments import Instruments
from tvmatch.training.state import TrainingState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class Step:
    """A training step as the loop makes it."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        config = DiTConfig(image_size=4, channels=2, num_classes=3, patch_size=2, hidden_size=16, depth=2, num_heads=2)
        self.objective = TerminalVelocityMatching(FlowMap(randomise(DiT(config))).to(self.device))
        self.flow = self.objective.flow
        self.parameters = list(self.flow.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.1, fused=True)
        self.training = TrainingState(self.objective, EvaluationEma(self.flow, (0.0, 0.9)), self.optimizer)
        self.instruments = Instruments(self.training.skipped)
        self.x0 = torch.randn(8, 2, 4, 4, device=self.device)
        self.label = torch.arange(8, device=self.device) % 4 - 1

    def __call__(self, factor: Tensor) -> None:
        self.objective.seed(self.training.step)
        result = self.objective(self.x0, self.label)
        result = result._replace(loss=result.loss * factor)
        result.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.instruments.observe(result)
        self.training.descend(self.instruments.decide(norm, self.training.step), 0.99)
        self.optimizer.zero_grad()

    def state(self) -> list[Tensor]:
        """Everything a checkpoint holds, but for the count of skipped steps."""
        tensors = self.training.tensors().items()
        return [value.detach().clone() for name, value in tensors if not name.startswith("skipped.")]


def test_a_skipped_step_leaves_every_bit_and_no_step_waits_for_the_host() -> None:
    step = Step()
    good, bad = torch.ones((), device=step.device), torch.full((), float("nan"), device=step.device)
    step(good)
    step(good)
    before = step.state()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # whatever makes the host wait raises
    try:
        step(bad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(step.state(), before, strict=True))
    step(good)
    assert not any(torch.equal(a, b) for a, b in zip(step.parameters, before, strict=False))
    reading = step.instruments.read()
    assert (reading.steps, reading.skipped, reading.skipped_total, reading.last_skipped_step) == (4, 1, 1, 2)
    assert reading.figures["loss"] > 0


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.99, 0.9999])
def test_averages_move_as_without_a_skip(decay: float) -> None:
    step = Step()
    randomise(step.flow)
    first = step.training.ema.flows[0.9]
    second = copy.deepcopy(first)
    move_towards([(first, decay)], step.flow)
    move_towards([(second, decay)], step.flow, torch.zeros((), device=step.device))
    tolerance = 0 if decay == 0 else 1e-6
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=tolerance, atol=tolerance)
