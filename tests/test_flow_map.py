"""The flow map against closed forms (Gaussian data) and finite differences, and what it refuses."""

import pytest
import torch
from torch import Tensor

from tests.conftest import randomise
from tvmatch.flow_map import FlowMap
from tvmatch.networks.base import Network, Tangents
from tvmatch.networks.dit import DiT
from tvmatch.networks.duals import TangentError


class GaussianNetwork(Network):
    """The exact network of data N(0, a^2): x_s = x_t sd(s) / sd(t), sd(t)^2 = (1 - t)^2 a^2 + t^2; divided by w."""

    def __init__(self, a: float) -> None:
        super().__init__(num_classes=0, data_shape=(2,))
        self.a = torch.nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def deviation(self, t: Tensor) -> Tensor:
        return ((1 - t).square() * self.a.square() + t.square()).sqrt()

    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        gap = s - t
        small = gap.abs() < 1e-9
        slope = (t - (1 - t) * self.a.square()) / self.deviation(t).square()  # d log sd / dt
        ratio = self.deviation(s) / self.deviation(t) - 1
        rate = torch.where(small, slope, ratio / torch.where(small, torch.ones_like(gap), gap))
        return x * (rate / w)[:, None]


def draw_inputs() -> tuple[Tensor, ...]:
    x = torch.randn(5, 2, dtype=torch.float64)
    t = torch.tensor([1.0, 0.8, 0.6, 0.9, 0.3], dtype=torch.float64)
    s = t * torch.tensor([0.0, 0.5, 0.9, 0.2, 0.7], dtype=torch.float64)
    return x, t, s, torch.full((5,), -1), torch.tensor([1.0, 2.0, 0.5, 4.0, 1.5], dtype=torch.float64)


def test_gaussian_jump_and_terminal_velocity_match_the_closed_form() -> None:
    network = GaussianNetwork(0.5)
    flow = FlowMap(network, scaled=True)
    x, t, s, label, w = draw_inputs()
    x_s, df_ds = flow.terminal_velocity(x, t, s, label, w)
    exact = x * (network.deviation(s) / network.deviation(t))[:, None]
    torch.testing.assert_close(x_s, exact)
    torch.testing.assert_close(x_s, flow.jump(x, t, s, label, w))
    # the condition that TVM trains for: the terminal velocity is the velocity of the flow at the point reached
    torch.testing.assert_close(df_ds, flow.velocity(x_s, s, label, w))


@pytest.mark.parametrize("scaled", [True, False])
def test_terminal_velocity_matches_central_differences(flow: FlowMap, inputs: dict, scaled: bool) -> None:
    flow = FlowMap(flow.network, scaled)
    x, t, s, label, w = (inputs[k] for k in ("x", "t", "s", "label", "w"))
    s = s.clamp(0.1) * 0.9
    _, df_ds = flow.terminal_velocity(x, t, s, label, w)
    h = 1e-5
    ahead, behind = (flow.displacement(x, t, s + d, label, w) for d in (h, -h))
    torch.testing.assert_close(df_ds, (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-8)


def test_derivative_along_every_direction(flow: FlowMap, inputs: dict) -> None:
    x, t, s, label, w = (inputs[k] for k in ("x", "t", "s", "label", "w"))
    s = s * 0.9
    directions = Tangents(torch.randn_like(x), torch.randn_like(t), torch.randn_like(s))
    _, slope = flow.network_derivative(x, t, s, label, w, directions)
    parts = [
        flow.network_derivative(x, t, s, label, w, part)[1]
        for part in (Tangents(x=directions.x), Tangents(t=directions.t), Tangents(s=directions.s))
    ]
    torch.testing.assert_close(slope, sum(parts))
    h = 1e-6
    ends = [flow.network(x + d * directions.x, t + d * directions.t, s + d * directions.s, label, w) for d in (h, -h)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-7)


def test_carried_pairs_equal_torch_func_jvp_of_the_whole_network(flow: FlowMap, inputs: dict) -> None:
    x, t, s, label, w = (inputs[k] for k in ("x", "t", "s", "label", "w"))
    _, slope = flow.network_derivative(x, t, s, label, w, Tangents(s=torch.ones_like(s)))
    _, whole = torch.func.jvp(lambda s: flow.network(x, t, s, label, w), (s,), (torch.ones_like(s),))
    torch.testing.assert_close(slope, whole, rtol=1e-12, atol=1e-12)


def test_unscaled_velocity_has_no_factor_w(flow: FlowMap, inputs: dict) -> None:
    x, t, label, w = (inputs[k] for k in ("x", "t", "label", "w"))
    plain = FlowMap(flow.network, scaled=False).velocity(x, t, label, w)
    torch.testing.assert_close(flow.velocity(x, t, label, w), w[:, None, None, None] * plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s": torch.tensor([0.95, 0.5, 0.0], dtype=torch.float64)}, r"s must be at most t.*0\.95"),
        ({"t": torch.tensor([1.2, 0.5, 1.0], dtype=torch.float64)}, r"time t must lie in \[0, 1\].*1\.2"),
        ({"s": torch.tensor([-0.1, 0.5, 0.0], dtype=torch.float64)}, r"time s must lie in \[0, 1\].*-0\.1"),
        ({"t": torch.tensor([float("nan"), 0.5, 1.0], dtype=torch.float64)}, "time t must lie in"),
        ({"t": torch.tensor([1, 1, 1])}, "time t must be floating point"),
        ({"t": torch.tensor(0.5, dtype=torch.float64)}, r"t must have shape \[3\]"),
        ({"w": torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)}, r"w must be positive.*0\.0"),
        ({"w": torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)}, r"w must be positive.*-2\.0"),
        ({"label": torch.tensor([0, 3, 0])}, r"labels must be -1 \(no class\) to 2.*3"),
        ({"label": torch.tensor([0, -2, 0])}, r"labels must be -1"),
        ({"label": torch.tensor([0.0, 1.0, 2.0])}, "labels must be integers"),
        ({"x": torch.zeros(3, 2, 5, 4, dtype=torch.float64)}, r"shape \[B, 2, 4, 4\], got \[3, 2, 5, 4\]"),
        ({"x": torch.zeros(3, 1, 4, 4, dtype=torch.float64)}, r"got \[3, 1, 4, 4\]"),
        ({"x": torch.zeros(3, 2, 4, 4, dtype=torch.uint8)}, r"floating point.*torch\.uint8"),
        ({"x": torch.full((3, 2, 4, 4), float("nan"), dtype=torch.float64)}, "NaN or infinity"),
    ],
)
def test_bad_input_is_named(flow: FlowMap, inputs: dict, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow.terminal_velocity(**(inputs | change))


class DetachedTime(GaussianNetwork):
    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        return super().forward(x, t, s.detach() if s.requires_grad else s.data, label, w)


class TangentDetached(GaussianNetwork):
    """Its tangent is right, but cut off from the parameters."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        primal, tangent = torch.autograd.forward_ad.unpack_dual(super().forward(x, t, s, label, w))
        return torch.autograd.forward_ad.make_dual(primal, tangent.detach()) if tangent is not None else primal


class SilentZero(GaussianNetwork):
    """A custom operator's way to fail: a zero where the derivative should be."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        primal, tangent = torch.autograd.forward_ad.unpack_dual(super().forward(x, t, s, label, w))
        return torch.autograd.forward_ad.make_dual(primal, tangent * 0) if tangent is not None else primal


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (DetachedTime, "has no tangent"),
        (TangentDetached, "carries gradients but its tangent does not"),
        (SilentZero, "exactly zero, but the output changes"),
    ],
)
def test_a_lost_tangent_raises(network: type[GaussianNetwork], message: str) -> None:
    x, t, s, label, w = draw_inputs()
    with pytest.raises(TangentError, match=message):
        FlowMap(network(0.5)).terminal_velocity(x, t, s, label, w)


def test_a_fresh_network_has_derivative_zero_and_that_is_no_error(small_config, inputs: dict) -> None:
    fresh = FlowMap(DiT(small_config).double())
    _, df_ds = fresh.terminal_velocity(**inputs)
    assert not df_ds.any()


class PairRoundsElsewhere(DiT):
    """Compiled code for pairs need not round as the code for plain tensors does."""

    def forward(self, *inputs: Tensor, tangents: Tangents | None = None):
        result = super().forward(*inputs, tangents=tangents)
        return result if tangents is None else (result[0] * (1 + 1e-12), result[1])


def test_rounding_between_plain_and_pair_is_no_lost_tangent(small_config, inputs: dict) -> None:
    network = PairRoundsElsewhere(small_config).double()
    torch.nn.init.ones_(network.final.linear.weight)  # as after one step: an output, but modulation layers still zero
    _, df_ds = FlowMap(network).terminal_velocity(**inputs)
    assert df_ds.any()


def test_detach_jvp_keeps_the_value_and_changes_the_gradient(flow: FlowMap, inputs: dict) -> None:
    results = [flow.terminal_velocity(**inputs, detach_jvp=detach)[1] for detach in (False, True)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(r.square().sum(), flow.network.patches.weight)[0] for r in results]
    assert not torch.allclose(*gradients)


def test_gradient_flows_through_the_jvp(small_config, inputs: dict) -> None:
    """d/dtheta of |dF/ds|^2 against a finite difference in one weight."""
    flow = FlowMap(randomise(DiT(small_config)).double())
    weight = flow.network.blocks[0].mlp.fc1.weight

    def value() -> Tensor:
        return flow.terminal_velocity(**inputs)[1].square().sum()

    gradient = torch.autograd.grad(value(), weight)[0][0, 0]
    with torch.no_grad():
        h = 1e-6
        weight[0, 0] += h
        ahead = value()
        weight[0, 0] -= 2 * h
        behind = value()
    torch.testing.assert_close(gradient, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)


class OneChannel(Network):
    """Answers in another shape than that of its data."""

    def __init__(self) -> None:
        super().__init__(num_classes=0, data_shape=(3, 4))
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        return x[:, :1] * (self.factor * (1 + s))[:, None, None]


def test_an_output_of_another_shape_is_not_broadcast() -> None:
    flow, x, half = FlowMap(OneChannel()), torch.randn(2, 3, 4), torch.full((2,), 0.5)
    point = (x, half, half, torch.full((2,), -1), torch.ones(2))
    for call in (flow.jump, flow.terminal_velocity):
        with pytest.raises(ValueError, match=r"OneChannel must return .* \[2, 3, 4\]; it returned \[2, 1, 4\]"):
            call(*point)


class LogarithmOfTime(Network):
    """Knows times in [0, 1] only, and has a fresh network's zero output."""

    def __init__(self) -> None:
        super().__init__(num_classes=0, data_shape=(2,))
        self.last = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        return x * (self.last * (s + 1e-3).log())[:, None]


def test_a_zero_derivative_is_not_looked_for_outside_of_the_times() -> None:
    flow, x, one = FlowMap(LogarithmOfTime()), torch.randn(2, 2), torch.ones(2)
    assert not flow.terminal_velocity(x, one, torch.zeros(2), torch.full((2,), -1), one)[1].any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's own attention under vmap
def test_a_jump_of_each_sample_under_vmap(flow: FlowMap, inputs: dict) -> None:
    """Values cannot be read there, and are not checked."""
    point = tuple(inputs[k] for k in ("x", "t", "s", "label", "w"))
    each = torch.func.vmap(lambda *one: flow.jump(*(value[None] for value in one))[0])(*point)
    torch.testing.assert_close(each, flow.jump(*point))
