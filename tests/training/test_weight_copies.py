"""Copies of the weights in 16 bits: the same numbers, and never an old copy."""

import copy

import pytest
import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.training.engine import prepare_objective

X0 = torch.linspace(-1, 1, 4 * 32).view(4, 2, 4, 4)
LABEL = torch.tensor([0, 1, 2, -1])


def prepared(flow: FlowMap, sharded: bool, compiled: bool = False) -> TerminalVelocityMatching:
    objective = TerminalVelocityMatching(copy.deepcopy(flow).float())
    prepare_objective(objective, torch.bfloat16, compiled, "none", sharded)
    return objective


def step(objective: TerminalVelocityMatching) -> tuple[Tensor, list[Tensor]]:
    objective.seed(1)
    objective.zero_grad()
    loss = objective(X0, LABEL).loss
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in objective.flow.parameters()]


def velocity(objective: TerminalVelocityMatching) -> Tensor:
    ones = torch.ones(4)
    with torch.no_grad():
        return objective.flow.velocity(X0, ones, LABEL, ones)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_is_the_same_bit_for_bit(flow: FlowMap, compiled: bool) -> None:
    with_copies, without = prepared(flow, False, compiled), prepared(flow, True, compiled)
    for _ in range(2):
        (loss, gradients), (expected, expected_gradients) = step(with_copies), step(without)
        assert torch.equal(loss, expected)
        assert all(map(torch.equal, gradients, expected_gradients))
        for objective, found in ((with_copies, gradients), (without, expected_gradients)):
            with torch.no_grad():
                for weight, gradient in zip(objective.flow.parameters(), found, strict=True):
                    weight.sub_(gradient)


def test_no_call_sees_an_old_copy(flow: FlowMap) -> None:
    with_copies, without = prepared(flow, False), prepared(flow, True)
    for objective in (with_copies, without):
        step(objective)
        optimizer = torch.optim.AdamW(objective.flow.parameters(), lr=0.1, fused=True)
        optimizer.step()  # writes into weights without counting it
    assert torch.equal(velocity(with_copies), velocity(without)), "a call from outside the objective"
    assert torch.equal(step(with_copies)[0], step(without)[0]), "a call by the objective"


def test_a_step_that_fails_leaves_no_trust_in_the_copies(flow: FlowMap) -> None:
    objective = prepared(flow, False)
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        objective(X0[:, :1], LABEL)
    before = velocity(objective)
    with torch.no_grad():
        for weight in objective.flow.parameters():
            weight.mul_(1.5)
    assert not torch.equal(velocity(objective), before)
