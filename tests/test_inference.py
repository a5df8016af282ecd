"""Flow maps made ready for drawing draw what they drew before; recorded samplers do so on a GPU."""

import pytest
import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.inference import RecordedSampler, ready_to_draw
from tvmatch.kernels.linear_gelu import linear_gelu
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.sampling import sample
from tvmatch.sampling_speed import SamplingCase, _require_same, measure_sampling, random_flow

CASE = SamplingCase("DiT-Digits/4", 8, 1, 3)


def drawn(flow: FlowMap, device: str = "cpu") -> Tensor:
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    return sample(flow, noise, torch.tensor([0, 1, 2, -1]), 1.5, 2) - noise


def error(flow: FlowMap, expected: Tensor) -> float:
    return float((drawn(flow, str(expected.device)) - expected).norm() / expected.norm())


def test_random_flows_depend_on_everything() -> None:
    """The check of what is drawn would be empty if a block could be left out unseen."""
    flow = random_flow(CASE, torch.device("cpu"))
    expected = drawn(flow)
    for block in flow.network.blocks:
        block.mlp.fc1.bias.data += 1
        assert error(flow, expected) > 0.01
        block.mlp.fc1.bias.data -= 1
    assert expected[0].sub(expected[1]).abs().max() > 0.01


def test_ready_flows_draw_the_same() -> None:
    flow = random_flow(CASE, torch.device("cpu"))
    expected = drawn(flow)
    assert error(ready_to_draw(flow), expected) < 1e-6
    low = ready_to_draw(flow, torch.bfloat16)
    assert 1e-5 < error(low, expected) < 2e-2
    block = low.network.blocks[0]
    assert {block.mlp.fc1.weight.dtype, block.attention.qkv.weight.dtype} == {torch.bfloat16}
    assert low.network.conditioning.time.fc1.weight.dtype == torch.float32
    assert drawn(flow).equal(expected)  # the flow that was given is as it was


@pytest.mark.slow
def test_compiled_flows_draw_the_same() -> None:
    flow = random_flow(CASE, torch.device("cpu"))
    assert error(ready_to_draw(flow, compiled=True), drawn(flow)) < 1e-5


def test_linear_gelu_is_both() -> None:
    layer, x = torch.nn.Linear(6, 5), torch.randn(2, 3, 6)
    expected = torch.nn.functional.gelu(layer(x), approximate="tanh")
    assert torch.allclose(linear_gelu(x, layer.weight.detach(), layer.bias.detach()), expected.detach(), atol=1e-6)


def test_networks_without_equal_blocks_are_refused() -> None:
    class Other(torch.nn.Module):
        num_classes, data_shape = 0, (2,)

    with pytest.raises(ValueError, match="Other has no equal blocks"):
        ready_to_draw(FlowMap(Other()))
    points = FlowMap(MLP(MLPConfig(dimension=2)))
    assert ready_to_draw(points) is not points


def test_a_recorded_sampler_says_that_it_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="needs a GPU; the weights are on cpu"):
        RecordedSampler(random_flow(CASE, torch.device("cpu")), 4)


def test_a_recorded_sampler_says_what_it_was_recorded_for() -> None:
    """What a call checks before it replays, without the recording."""
    sampler = RecordedSampler.__new__(RecordedSampler)
    sampler.flow = random_flow(CASE, torch.device("cpu"))
    sampler.noise, sampler.label = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, -1])
    sampler._check(sampler.noise, sampler.label)
    with pytest.raises(ValueError, match="recorded for batches of 4, got 3"):
        sampler._check(sampler.noise[:3], sampler.label[:3])
    with pytest.raises(ValueError, match="labels must be"):
        sampler._check(sampler.noise, sampler.label + 9)
    with pytest.raises(ValueError, match=r"label must have shape \[4\]"):
        sampler._check(sampler.noise, sampler.label.to("meta")[:1])


def test_what_draws_something_else_is_no_row() -> None:
    jump = torch.randn(3, 4)
    _require_same(jump * 1.01, jump, "graph", 3)
    for other in (jump * 1.1, jump * float("nan")):
        with pytest.raises(RuntimeError, match="graph, batch 3: what is drawn differs from a launched call by"):
            _require_same(other, jump, "graph", 3)


@pytest.mark.gpu
def test_modes_on_a_gpu() -> None:
    rows = list(measure_sampling(CASE, (1, 8), ("eager", "compiled", "graph"), torch.device("cuda")))
    assert len(rows) == 6


@pytest.mark.gpu
def test_a_recorded_sampler_draws_what_it_is_given() -> None:
    flow = random_flow(CASE, torch.device("cuda"))
    recorded = RecordedSampler(ready_to_draw(flow), 4, 1.5, 2)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).cuda()
    label = torch.tensor([0, 1, 2, -1])
    assert torch.allclose(recorded(noise, label) - noise, drawn(flow, "cuda"), atol=1e-5)
    other = recorded(noise.flip(0), label.flip(0)).clone()
    assert torch.allclose(other.flip(0) - noise, drawn(flow, "cuda"), atol=1e-5)
    with pytest.raises(ValueError, match="recorded for batches of 4, got 3"):
        recorded(noise[:3], label[:3])
    with pytest.raises(ValueError, match="labels must be"):
        recorded(noise, label + 9)
