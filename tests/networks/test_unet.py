from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import randomise
from tests.training.support import tiny_config
from tvmatch.flow_map import FlowMap
from tvmatch.networks.base import Tangents
from tvmatch.networks.convolutions import Conv, GroupNorm, double, halve
from tvmatch.networks.presets import UNETS, build_network, network_config
from tvmatch.networks.probe import verify_tangents
from tvmatch.networks.unet import UNet, UNetConfig
from tvmatch.training.attention_probe import largest_logits
from tvmatch.training.build import build_objective
from tvmatch.training.config import ObjectiveName, TrainConfig
from tvmatch.training.engine import prepare_network
from tvmatch.training.header import network_from_header, network_to_header
from tvmatch.training.loop import train
from tvmatch.training.trained import load_run

SMALL = UNetConfig(8, 2, 3, base_channels=8, multipliers=(1, 2), blocks=1, attention=(4,))


@pytest.fixture
def network() -> UNet:
    return randomise(UNet(SMALL)).double()


@pytest.fixture
def point() -> dict[str, Tensor]:
    return {
        "x": torch.randn(3, 2, 8, 8, dtype=torch.float64),
        "t": torch.tensor([0.9, 0.5, 0.4], dtype=torch.float64),
        "s": torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64),
        "label": torch.tensor([-1, 0, 2]),
        "w": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
    }


def test_a_fresh_network_draws_nothing(point: dict[str, Tensor]) -> None:
    assert not UNet(SMALL).double()(**point).any()


def test_tangents_equal_forward_mode_of_torch_func_and_differences(network: UNet, point: dict[str, Tensor]) -> None:
    x, t, s, label, w = point.values()
    direction = Tangents(torch.randn_like(x), torch.randn_like(t), torch.randn_like(s))
    primal, slope = FlowMap(network).network_derivative(x, t, s, label, w, direction)
    whole = torch.func.jvp(lambda x, t, s: network(x, t, s, label, w), (x, t, s), tuple(direction))
    torch.testing.assert_close((primal, slope), whole, rtol=1e-9, atol=1e-9)
    h = 1e-5
    ends = [network(x + d * direction.x, t + d * direction.t, s + d * direction.s, label, w) for d in (h, -h)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-5)
    verify_tangents(FlowMap(network))


def test_gradients_flow_through_the_tangent_as_differences_say(network: UNet, point: dict[str, Tensor]) -> None:
    """Along one random direction in all weights."""
    flow, change = FlowMap(network), {name: torch.randn_like(p) for name, p in network.named_parameters()}

    def figure() -> Tensor:
        jump = flow.jump_with_velocity(*point.values())
        return jump.df_ds.square().mean()

    figure().backward()
    expected = sum(float((p.grad * change[name]).sum()) for name, p in network.named_parameters())

    def moved(h: float) -> float:
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.add_(change[name], alpha=h)
        value = float(figure().detach())
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.sub_(change[name], alpha=h)
        return value

    h = 1e-6
    assert (moved(h) - moved(-h)) / (2 * h) == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_group_norm_is_that_of_pytorch() -> None:
    ours, x = randomise(GroupNorm(24)).double(), torch.randn(2, 24, 5, 3, dtype=torch.float64)
    assert ours.groups == 6
    torch.testing.assert_close(ours(x), functional.group_norm(x, 6, ours.weight, ours.bias, 1e-5))
    assert [GroupNorm(channels).groups for channels in (3, 8, 128, 256)] == [1, 2, 32, 32]


def test_resampling() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(halve(x), functional.avg_pool2d(x, 2))
    torch.testing.assert_close(double(x), functional.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(halve(double(x)), x)
    assert Conv(1, 2)(x).shape == (1, 2, 4, 4)


def test_every_input_matters(network: UNet, point: dict[str, Tensor]) -> None:
    plain = network(**point)
    for name, other in (("t", 0.95), ("s", 0.05), ("w", 4.0), ("label", 1)):
        changed = network(**(point | {name: torch.full_like(point[name], other)}))
        assert not torch.isclose(plain, changed).all(), name


def test_attention_is_seen_by_the_probe(network: UNet, point: dict[str, Tensor]) -> None:
    """At 4 x 4 pixels: one block down, one in the middle, two up."""
    assert len(largest_logits(network, *point.values())) == 4


@pytest.mark.parametrize(("name", "size", "millions"), [("UNet-Tiny", 8, 0.9), ("UNet-CIFAR", 32, 42)])
def test_presets(name: str, size: int, millions: float) -> None:
    with torch.device("meta"):
        network = build_network(network_config(name, size, 3, 10))
    assert name in UNETS
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)


def test_a_class_is_felt_from_the_beginning() -> None:
    """With the class embeddings of a DiT (0.02) digits of no class were drawn after 300 steps."""
    torch.manual_seed(0)
    ones = torch.ones(2)
    first, second = UNet(SMALL).conditioning(ones, 0.5 * ones, ones, torch.tensor([0, 1]))
    assert (first - second).norm() > 0.5 * first.norm()


def test_it_survives_a_header() -> None:
    config = network_config("UNet-Tiny", 8, 1, 10)
    assert network_from_header(network_to_header(config), "here") == config
    values = network_to_header(config)
    values["attention"], values["multipliers"] = list(values["attention"]), list(values["multipliers"])
    assert network_from_header(values, "here") == config


def test_it_trains_on_digits_and_is_opened_again(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", network="UNet-Tiny", steps=4, batch_size=8, learning_rate=1e-3)
    train(config, show=False)
    trained = load_run(config.run)
    assert isinstance(trained.flow.network, UNet)
    assert trained.flow.network.last.weight.any()


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_every_objective_moves_all_of_its_weights(network: UNet, objective: ObjectiveName) -> None:
    method = build_objective(TrainConfig(objective=objective, guidance="1:2"), FlowMap(network)).double()
    method.seed(1)
    loss = method(torch.randn(8, 2, 8, 8, dtype=torch.float64), torch.arange(8) % 4 - 1).loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    network = UNet(SMALL)
    for options in ((torch.bfloat16, False, "none"), (None, True, "none"), (None, False, "full")):
        with pytest.raises(ValueError, match="UNet has no equal blocks; it runs with precision float32, compile off"):
            prepare_network(network, *options)
    with pytest.raises(ValueError, match="UNet-Tiny has no option qk_norm"):
        train(tiny_config(tmp_path / "run", network="UNet-Tiny", qk_norm=False), show=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 10, "multipliers": (1, 2, 2)}, "image_size=10 cannot be halved 2 times"),
        ({"attention": (5,)}, r"attention at 5 pixels a side, but the resolutions are \(8, 4\)"),
        ({"multipliers": ()}, "multipliers must be one number or more"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"num_classes": -1}, "num_classes must be 0"),
    ],
)
def test_bad_shapes_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**({"image_size": 8, "multipliers": (1, 2), "attention": (4,)} | values))


def test_a_lost_tangent_raises(network: UNet, point: dict[str, Tensor]) -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    network.norm = Detached()
    with pytest.raises(RuntimeError, match=r"no tangent|gradients"):
        FlowMap(network).jump_with_velocity(*point.values())
