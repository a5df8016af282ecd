import copy

import pytest
import torch

from tests.conftest import randomise
from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.training.ema import EvaluationEma, move_towards


def set_all(flow: FlowMap, value: float) -> None:
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.fill_(value)


def only_value(flow: FlowMap) -> float:
    """The number that every weight holds."""
    values = torch.cat([parameter.detach().flatten() for parameter in flow.parameters()])
    assert values.min() == values.max()
    return float(values[0])


def test_decay_0_copies_and_decay_1_stays(flow: FlowMap, small_config: DiTConfig) -> None:
    average = FlowMap(randomise(DiT(small_config)).double())
    before = copy.deepcopy(average.state_dict())
    move_towards([(average, 1.0)], flow)
    torch.testing.assert_close(average.state_dict(), before, rtol=0, atol=0)
    move_towards([(average, 0.0)], flow)
    torch.testing.assert_close(average.state_dict(), flow.state_dict(), rtol=0, atol=0)


def test_every_weight_moves_by_the_same_share(flow: FlowMap) -> None:
    average, before = copy.deepcopy(flow), copy.deepcopy(flow.state_dict())
    randomise(flow)
    move_towards([(average, 0.75)], flow)
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * flow.state_dict()[name])


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.99, 0.9999, 1.0])
def test_where_skip_is_0_it_moves_as_without(flow: FlowMap, small_config: DiTConfig, decay: float) -> None:
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        source = copy.deepcopy(flow).to(dtype)
        first = FlowMap(randomise(DiT(small_config))).to(dtype)
        second = copy.deepcopy(first)
        move_towards([(first, decay)], source)
        move_towards([(second, decay)], source, torch.tensor(0.0))
        exact = {"rtol": 0, "atol": 0} if decay in (0.0, 1.0) else {"rtol": rtol, "atol": rtol}
        torch.testing.assert_close(second.state_dict(), first.state_dict(), **exact)
        torch.testing.assert_close(source.state_dict(), copy.deepcopy(flow).to(dtype).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_where_skip_is_1_no_bit_changes(flow: FlowMap, decay: float) -> None:
    ema, before = EvaluationEma(flow, (decay, 0.7)), copy.deepcopy(flow.state_dict())
    set_all(flow, float("nan"))
    move_towards(ema.at(100), flow, torch.tensor(1.0))
    for moved in ema.flows.values():
        assert all(torch.equal(value, before[name]) for name, value in moved.state_dict().items())


def test_closed_form_after_many_steps(flow: FlowMap) -> None:
    """Towards a constant 1 from 0, at decay d: 1 - d^n."""
    average = copy.deepcopy(flow)
    set_all(average, 0.0)
    set_all(flow, 1.0)
    for _ in range(20):
        move_towards([(average, 0.9)], flow)
    assert only_value(average) == pytest.approx(1 - 0.9**20, rel=1e-12)


def test_evaluation_averages_warm_up_and_keep_their_own_decay(flow: FlowMap) -> None:
    set_all(flow, 0.0)
    ema = EvaluationEma(flow, (0.2, 0.9999))
    expected = dict.fromkeys(ema.flows, 0.0)
    for step in range(15):
        set_all(flow, float(step + 1))
        move_towards(ema.at(step), flow)
        for decay in expected:
            used = min(decay, (1 + step) / (10 + step))
            expected[decay] = used * expected[decay] + (1 - used) * (step + 1)
    assert {decay: only_value(average) for decay, average in ema.flows.items()} == pytest.approx(expected, rel=1e-12)
    # at 0.9999 without the warm-up it would still lie near the initial 0
    assert only_value(ema.flows[0.9999]) > 5


def test_averages_are_copies_for_evaluation(flow: FlowMap) -> None:
    average = EvaluationEma(flow, (0.9,)).flows[0.9]
    assert not average.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in flow.parameters())
    set_all(flow, 3.0)
    assert not any(bool((parameter == 3).all()) for parameter in average.parameters())
