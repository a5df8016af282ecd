"""A recorded step gives the numbers of a launched one."""

import copy

import pytest
import torch

from tvmatch.flow_map import FlowMap
from tvmatch.networks.presets import build_network, network_config
from tvmatch.objectives import FlowMatching, Part, TerminalVelocityMatching
from tvmatch.training.engine import prepare_objective, should_capture
from tvmatch.training.step_gradient import LAUNCHED_STEPS, RecordingError, StepGradient, check_recorded

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_where_steps_are_recorded() -> None:
    assert should_capture("auto", GPU, ranks=1, accumulate=1)
    assert not should_capture("off", GPU, ranks=1, accumulate=1)
    assert should_capture("on", GPU, ranks=2, accumulate=1)
    assert not should_capture("auto", GPU, ranks=2, accumulate=1)
    for device, ranks, accumulate in ((CPU, 1, 1), (CPU, 2, 1), (GPU, 1, 2), (GPU, 2, 2)):
        assert not should_capture("auto", device, ranks, accumulate)
        with pytest.raises(ValueError, match="--graphs on needs a GPU for each process and --accumulate 1"):
            should_capture("on", device, ranks, accumulate)


def test_a_launched_step_fills_the_gradient_and_clears_it(flow: FlowMap) -> None:
    objective = TerminalVelocityMatching(flow)
    optimizer = torch.optim.AdamW(flow.parameters())
    gradient = StepGradient(objective, objective, optimizer, capture=False)
    x0, label = torch.randn(4, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, -1])
    objective.seed(1)
    whole = gradient(x0, label, Part(0, 4, 4))
    expected = [p.grad.clone() for p in flow.parameters()]
    assert not whole.loss.requires_grad
    gradient.clear()
    assert all(p.grad is None for p in flow.parameters())
    for _ in range(2):
        objective.seed(1)
        gradient(x0, label, Part(0, 4, 4), share=0.5)
    torch.testing.assert_close([p.grad for p in flow.parameters()], expected)


def test_a_recording_that_differs_or_stands_still_is_refused() -> None:
    check_recorded((1.0, 2.0), (1.001, 2.001), (1.1, 2.1))
    for recorded in ((1.1, 2.0), (1.0, 2.2), (float("nan"), 2.0)):
        with pytest.raises(RecordingError, match="--graphs off"):
            check_recorded((1.0, 2.0), recorded, (3.0, 4.0))
    with pytest.raises(RecordingError, match="draws stand still"):
        check_recorded((1.0, 2.0), (1.0, 2.0), (1.0, 2.0))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [TerminalVelocityMatching, FlowMatching])
@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_steps_train_to_the_same_weights(kind: type, compiled: bool) -> None:
    with GPU:
        flow = FlowMap(build_network(network_config("DiT-Digits/2", 16, 3, 10)))
    weights = {}
    for capture in (False, True):
        objective = kind(copy.deepcopy(flow))
        prepare_objective(objective, torch.bfloat16, compiled, "none")
        optimizer = torch.optim.AdamW(objective.flow.parameters(), lr=1e-3, fused=True)
        gradient = StepGradient(objective, objective, optimizer, capture)
        losses = []
        for step in range(LAUNCHED_STEPS + 6):
            objective.seed(step)
            x0 = torch.full((8, 3, 16, 16), step / 10, device=GPU)
            losses.append(gradient(x0, torch.arange(8, device=GPU), Part(0, 8, 8)).loss.clone())
            optimizer.step()
            gradient.clear()
        assert (gradient.graph is not None) == capture
        weights[capture] = torch.cat(
            [torch.stack(losses), *(p.detach().flatten() for p in objective.flow.parameters())]
        )
    assert torch.equal(weights[True], weights[False])
    with pytest.raises(ValueError, match="recorded for a batch"):
        gradient(torch.zeros(4, 3, 16, 16, device=GPU), torch.arange(4, device=GPU), Part(0, 4, 4))
