import pytest
import torch

from tests.objectives.test_terminal_velocity import draws
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance
from tvmatch.objectives import FlowMatching, TerminalVelocityMatching


def test_it_is_the_boundary_term_of_tvm(flow: FlowMap) -> None:
    given = draws()
    ours = FlowMatching.terms(flow, flow, **{k: given[k] for k in ("x0", "noise", "r", "label", "w")})
    torch.testing.assert_close(ours, TerminalVelocityMatching.terms(flow, flow, **given).boundary)


@pytest.mark.parametrize(("w", "calls"), [(1.0, 0), (2.0, 1)])
def test_only_guidance_asks_the_target(flow: FlowMap, w: float, calls: int) -> None:
    objective = FlowMatching(flow, guidance=FixedGuidance(w), label_dropout=0.0)
    seen = []
    objective.target.network.register_forward_hook(lambda *arguments: seen.append(1))
    x0, label = torch.randn(4, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, -1])
    assert objective(x0, label).loss > 0
    assert len(seen) == calls


def test_without_guidance_it_learns_the_conditional_velocity(flow: FlowMap) -> None:
    given = {k: draws()[k] for k in ("x0", "noise", "r", "label")}
    ones = torch.ones(4, dtype=torch.float64)
    loss = FlowMatching.terms(flow, flow, **given, w=ones, guided=False)
    r = given["r"][:, None, None, None]
    u = flow.velocity((1 - r) * given["x0"] + r * given["noise"], given["r"], given["label"], ones)
    torch.testing.assert_close(loss, (u - (given["noise"] - given["x0"])).square().mean((1, 2, 3)))


def test_the_step_reports_its_samples_by_their_one_time(flow: FlowMap) -> None:
    step = FlowMatching(flow)(torch.randn(4, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, -1]))
    (samples,) = step.samples
    assert samples.s is None
    assert samples.t.shape == (4,)
    torch.testing.assert_close(samples.figures["boundary"].mean(), step.loss.detach())
    assert not samples.figures["boundary"].requires_grad
