"""Copies of the weights in 16 bits: the same numbers, and never an old copy."""

import copy
import functools

import pytest
import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.training import weight_copies
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


def error(ours: list[Tensor], exact: list[Tensor]) -> float:
    return float(sum((a - b).square().sum() for a, b in zip(ours, exact, strict=True)).sqrt())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_is_the_same_with_gradients_at_least_as_exact(flow: FlowMap, compiled: bool) -> None:
    """Without copies the gradients of a weight from primal and tangent are added in 16 bits; of the rest every bit is
    the same."""
    exact = TerminalVelocityMatching(copy.deepcopy(flow).float())
    with_copies, without = prepared(flow, False, compiled), prepared(flow, True, compiled)
    for _ in range(2):
        (loss, gradients), (expected, expected_gradients), (_, best) = map(step, (with_copies, without, exact))
        assert torch.equal(loss, expected)
        size = error(best, [torch.zeros_like(g) for g in best])
        assert error(gradients, expected_gradients) < 4e-3 * size
        assert error(gradients, best) < 1.02 * error(expected_gradients, best)
        if not compiled:  # where the compiler adds gradients of biases in another order
            same = [name for name, p in flow.named_parameters() if p.dim() == 1 or "blocks" not in name]
            found = {
                name: torch.equal(*g)
                for (name, _), *g in zip(flow.named_parameters(), gradients, expected_gradients, strict=True)
            }
            assert all(found[name] for name in same), found
        for objective in (with_copies, without, exact):
            with torch.no_grad():
                for weight, gradient in zip(objective.flow.parameters(), expected_gradients, strict=True):
                    weight.sub_(gradient, alpha=0.1)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_every_product_has_a_place_for_its_gradient(
    flow: FlowMap, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a weight of two dimensions three (jump, its tangent, boundary), of a bias two, and none is left out."""
    counts: dict[int, set[int]] = {1: set(), 2: set()}

    def counted(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        assert all(part.dtype == torch.bfloat16 for part in parts)
        counts[parts[0].dim()].add(len(parts))
        return sum(part.to(dtype) for part in parts)

    monkeypatch.setattr(weight_copies, "gradient_sum", counted)
    objective = TerminalVelocityMatching(copy.deepcopy(flow).float())
    prepare_objective(objective, torch.bfloat16, False, recompute)
    _, gradients = step(objective)
    assert counts == {1: {2}, 2: {3}}
    _, plain = step(prepared(flow, False))
    assert error(gradients, plain) == 0


def test_copies_of_a_network_do_without(flow: FlowMap) -> None:
    """A network that is copied in the middle of a step keeps casting its own weights."""
    objective = prepared(flow, False)
    objective.seed(1)
    objective(X0, LABEL)  # its graph is still there
    ours = copy.deepcopy(objective.flow)
    ones = torch.ones(4)
    with torch.no_grad():
        before = ours.velocity(X0, ones, LABEL, ones)
        assert torch.equal(before, velocity(objective))
        for weight in ours.parameters():
            weight.mul_(1.5)
        assert not torch.equal(ours.velocity(X0, ones, LABEL, ones), before)


def test_a_call_past_the_block_raises(flow: FlowMap) -> None:
    """There the copies have no place for gradients: nothing would be learned."""
    objective = prepared(flow, False)
    layer = objective.flow.network.blocks[0].attention.proj
    with torch.no_grad():
        layer(torch.ones(1, layer.in_features))
    with pytest.raises(RuntimeError, match="called past its block"):
        layer(torch.ones(1, layer.in_features))


@pytest.mark.slow
def test_copies_compile_nothing_twice(flow: FlowMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of tangents, outside the objective, and steps, the first as all others."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    graphs = []
    for sharded in (True, False):  # without copies, and with them
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        objective = prepared(flow, sharded, compiled=True)
        ones = torch.ones(4)
        objective.flow.jump_with_velocity(X0, ones, 0.5 * ones, LABEL, ones)
        for _ in range(2):
            step(objective)
        velocity(objective)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


def test_no_call_sees_an_old_copy(flow: FlowMap) -> None:
    with_copies, without = prepared(flow, False), prepared(flow, True)
    step(with_copies)
    torch.optim.AdamW(with_copies.flow.parameters(), lr=0.1, fused=True).step()  # writes without counting it
    without.load_state_dict(with_copies.state_dict())
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
