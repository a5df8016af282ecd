import pytest
import torch

from tests.test_flow_map import DetachedTime, GaussianNetwork, SilentZero
from tvmatch.flow_map import FlowMap
from tvmatch.networks import probe
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.networks.duals import TangentError
from tvmatch.networks.probe import verify_tangents


def test_a_fresh_network_passes(small_config: DiTConfig) -> None:
    assert verify_tangents(FlowMap(DiT(small_config))) < 0.05


def test_the_derivative_of_some_samples_only(small_config: DiTConfig) -> None:
    """Each way of calling the network gets the one batch size that it has in a step."""
    network, sizes = DiT(small_config), []
    network.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append((len(args[0]), bool(kwargs))), with_kwargs=True
    )
    assert verify_tangents(FlowMap(network), batch=8, every=4) < 0.05
    assert sizes[0] == (2, True)
    assert {size for size in sizes[1:] if not size[1]} <= {(8, False), (2, False)}


class HalfTangent(GaussianNetwork):
    """Wrong by a factor: neither dropped nor zero, so that only the numbers can tell."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        primal, tangent = torch.autograd.forward_ad.unpack_dual(super().forward(*inputs))
        return primal if tangent is None else torch.autograd.forward_ad.make_dual(primal, tangent * 0.5)


@pytest.mark.parametrize("network", [DetachedTime, SilentZero, HalfTangent])
def test_wrong_tangents_are_found(network: type[GaussianNetwork]) -> None:
    with pytest.raises(TangentError):
        verify_tangents(FlowMap(network(0.5)))
    verify_tangents(FlowMap(GaussianNetwork(0.5)))


def test_sixteen_bits_pass_and_lost_tangents_do_not(small_config: DiTConfig) -> None:
    network = DiT(small_config)
    network.set_compute_dtype(torch.bfloat16)
    assert verify_tangents(FlowMap(network), batch=32) < 0.4


@pytest.mark.parametrize("halved", [False, True])
def test_a_derivative_below_the_rounding_of_differences(
    small_config: DiTConfig, halved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after flow matching alone; found on a GPU, where a run that began from such weights was refused."""
    torch.manual_seed(0)
    network = DiT(small_config)
    network.set_compute_dtype(torch.bfloat16)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        network.conditioning.gap.fc2.weight.mul_(1e-4)
    flow = FlowMap(network)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    assert probe._compare(flow, 32, 1, probe.STEP_16, all_weights=False)[2] > probe.TOLERANCE_16
    if halved:
        right = flow.network_derivative
        monkeypatch.setattr(flow, "network_derivative", lambda *given: (0, right(*given)[1] * 0.3))
        with pytest.raises(TangentError):
            verify_tangents(flow, batch=32)
    else:
        assert verify_tangents(flow, batch=32) < 0.4
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


@pytest.mark.parametrize("failing", [True, False])
def test_the_weights_come_back_also_after_a_failure(small_config: DiTConfig, failing: bool) -> None:
    flow = FlowMap(DiT(small_config))
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    if failing:
        flow.network.final.register_forward_hook(lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            verify_tangents(flow)
    else:
        verify_tangents(flow)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
