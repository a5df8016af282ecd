import torch

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance
from tvmatch.objectives import FlowMatching, TerminalVelocityMatching


def test_it_is_the_boundary_term_of_tvm(flow: FlowMap) -> None:
    from tests.objectives.test_terminal_velocity import draws

    given = draws()
    ours = FlowMatching.terms(flow, flow, **{k: given[k] for k in ("x0", "noise", "r", "label", "w")})
    torch.testing.assert_close(ours, TerminalVelocityMatching.terms(flow, flow, **given).boundary)


def test_without_guidance_it_learns_the_conditional_velocity(flow: FlowMap) -> None:
    objective = FlowMatching(flow, guidance=FixedGuidance(1.0), label_dropout=0.0)
    x0, label = torch.randn(4, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, -1])
    before = objective(x0, label).loss
    with torch.no_grad():  # a target that would spoil any guided loss changes nothing
        for parameter in objective.target.parameters():
            parameter.fill_(1e3)
    objective.seed(0)
    first = objective(x0, label).loss
    objective.seed(0)
    assert torch.equal(first, objective(x0, label).loss)
    assert torch.isfinite(before)
    assert first < 1e3
