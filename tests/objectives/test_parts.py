"""However a batch is cut into parts, the training is the same: one loss and one gradient, in float64."""

import functools

import pytest
import torch

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import UniformGuidance
from tvmatch.objectives import (
    AlphaFlow,
    ConsistencyTraining,
    FlowMatching,
    ImprovedMeanFlow,
    InductiveMomentMatching,
    LagrangianSelfDistillation,
    MeanFlow,
    ModularMeanFlow,
    Objective,
    Part,
    Shortcut,
    SplitMeanFlow,
    TerminalVelocityMatching,
)

WHOLE = 12


def gradient(objective: Objective) -> torch.Tensor:
    flat = torch.cat([parameter.grad.flatten() for parameter in objective.flow.parameters()])
    objective.zero_grad()
    return flat


METHODS = [
    TerminalVelocityMatching,
    FlowMatching,
    AlphaFlow,
    ConsistencyTraining,
    ImprovedMeanFlow,
    LagrangianSelfDistillation,
    MeanFlow,
    ModularMeanFlow,
    Shortcut,
    SplitMeanFlow,
]


@pytest.mark.parametrize(
    ("method", "count"),
    [(method, count) for method in METHODS for count in (6, 3, 1)]
    + [(functools.partial(InductiveMomentMatching, group=3), count) for count in (6, 3)],
)
def test_the_mean_over_parts_is_the_whole(flow: FlowMap, method: type[Objective], count: int) -> None:
    grouped = isinstance(method, functools.partial)  # groups are formed within a part: here of samples in their order
    objective = method(flow, guidance=UniformGuidance(1, 3), label_dropout=0.0 if grouped else 0.3)
    x0, label = torch.randn(WHOLE, 2, 4, 4, dtype=torch.float64), torch.arange(WHOLE) % 4 - 1
    label = label.sort().values if grouped else label
    objective.seed(7)
    whole = objective(x0, label)
    whole.loss.backward()
    expected, losses, terms = gradient(objective), [], []
    for first in range(0, WHOLE, count):
        objective.seed(7)
        part = Part(first, count, WHOLE)
        result = objective(part.cut(x0), part.cut(label), part)
        (result.loss * count / WHOLE).backward()
        losses.append(result.loss.detach())
        terms.append(torch.stack(list(result.terms.values())))
    torch.testing.assert_close(torch.stack(losses).mean(), whole.loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.stack(terms).mean(0), torch.stack(list(whole.terms.values())), rtol=1e-12, atol=1e-15
    )
    torch.testing.assert_close(gradient(objective), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("part", [Part(0, 6, 12), Part(2, 4, 12)])
def test_parts_that_cut_groups_are_refused(flow: FlowMap, part: Part) -> None:
    objective = InductiveMomentMatching(flow, group=4)
    with pytest.raises(ValueError, match=rf"groups of 4 samples, which {part.count} of a batch of 12 cut apart"):
        objective(torch.randn(part.count, 2, 4, 4, dtype=torch.float64), torch.zeros(part.count).long(), part)
