"""The TVM objective: its zero at the exact flow map, its parts, and what each option does."""

import pytest
import torch
from torch import Tensor

from tests.conftest import randomise
from tests.test_flow_map import GaussianNetwork
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance, UniformGuidance
from tvmatch.networks.dit import DiT
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.objectives.base import Part
from tvmatch.times import Independent, Uniform


def draws(batch: int = 4) -> dict[str, Tensor]:
    t = torch.rand(batch, dtype=torch.float64)
    return {
        "x0": torch.randn(batch, 2, 4, 4, dtype=torch.float64),
        "noise": torch.randn(batch, 2, 4, 4, dtype=torch.float64),
        "t": t,
        "s": t * torch.rand(batch, dtype=torch.float64),
        "r": torch.rand(batch, dtype=torch.float64),
        "label": torch.tensor([-1, 0, 1, 2])[:batch],
        "w": torch.tensor([1.0, 1.5, 2.0, 3.0], dtype=torch.float64)[:batch],
    }


def target_of(flow: FlowMap, small_config) -> FlowMap:
    return FlowMap(randomise(DiT(small_config)).double(), flow.scaled)


def test_terminal_loss_vanishes_at_the_exact_flow_map_and_only_there() -> None:
    batch = 64
    x0 = 0.5 * torch.randn(batch, 2, dtype=torch.float64)
    t = torch.rand(batch, dtype=torch.float64)
    given = {
        "x0": x0,
        "noise": torch.randn_like(x0),
        "t": t,
        "s": t * 0.4,
        "r": t,
        "label": torch.full((batch,), -1),
        "w": torch.ones(batch, dtype=torch.float64),
    }
    exact = FlowMap(GaussianNetwork(0.5))
    assert TerminalVelocityMatching.terms(exact, exact, **given).terminal.max() < 1e-20
    # another flow map fulfils its own equation too; it is the boundary term that ties the pair to the data
    other = FlowMap(GaussianNetwork(0.8))
    assert TerminalVelocityMatching.terms(other, other, **given).terminal.max() < 1e-20
    assert TerminalVelocityMatching.terms(exact, other, **given).terminal.mean() > 1e-3


def test_boundary_loss_of_a_gaussian_is_its_irreducible_variance_at_best() -> None:
    """E|u - v|^2 is smallest at the true velocity, where it equals Var(v | x_t) (DESIGN section 1)."""
    batch, a, time = 200_000, 0.5, 0.6
    x0 = a * torch.randn(batch, 2, dtype=torch.float64)
    t = torch.full((batch,), time, dtype=torch.float64)
    given = {"x0": x0, "noise": torch.randn_like(x0), "t": t, "s": t * 0.5, "r": t, "label": torch.full((batch,), -1)}
    given["w"] = torch.ones_like(t)

    def boundary(deviation: float) -> float:
        flow = FlowMap(GaussianNetwork(deviation))
        return float(TerminalVelocityMatching.terms(flow, flow, **given).boundary.mean())

    variance = (1 - time) ** 2 * a**2 + time**2
    irreducible = 1 + a**2 - (time - (1 - time) * a**2) ** 2 / variance
    assert boundary(a) == pytest.approx(irreducible, rel=0.02)
    assert boundary(a) < min(boundary(0.4), boundary(0.6))


def test_each_sample_by_hand(flow: FlowMap, small_config) -> None:
    """The loss again, one sample at a time, from the equations of DESIGN section 1 and plain autograd."""
    target, given = target_of(flow, small_config), draws()
    terms = TerminalVelocityMatching.terms(flow, target, **given)
    for i in range(4):
        one = {key: value[i : i + 1] for key, value in given.items()}
        x0, noise, t, s, r, label, w = (one[key] for key in ("x0", "noise", "t", "s", "r", "label", "w"))
        x_t, x_r = (1 - t) * x0 + t * noise, (1 - r) * x0 + r * noise

        def displacement(time: Tensor, x_t=x_t, t=t, label=label, w=w) -> Tensor:
            return (time - t) * w * flow.network(x_t, t, time, label, w)

        df_ds = torch.autograd.functional.jacobian(displacement, s)[..., 0]
        x_s = x_t + displacement(s)
        terminal = (df_ds - w * target.network(x_s, s, s, label, w)).square().mean() / w**2
        null, one_w = torch.tensor([-1]), torch.ones_like(w)
        guided = w * (noise - x0) + (1 - w) * target.network(x_r, r, r, null, one_w)
        boundary = (w * flow.network(x_r, r, r, label, w) - guided).square().mean() / w**2
        torch.testing.assert_close(terms.terminal[i], terminal[0])
        torch.testing.assert_close(terms.boundary[i], boundary[0])


@pytest.mark.parametrize("guided", [True, False])
def test_the_terminal_term_of_every_second_sample(flow: FlowMap, small_config, guided: bool) -> None:
    """Each term as it is when all samples jump; and over both halves the loss comes out the same on average."""
    target, given = target_of(flow, small_config), draws()
    if not guided:
        given["w"] = torch.ones_like(given["w"])
    calls: dict[str, list[int]] = {"flow": [], "target": []}
    for name, each in (("flow", flow), ("target", target)):
        each.network.register_forward_hook(lambda module, args, output, name=name: calls[name].append(len(args[0])))
    full = TerminalVelocityMatching.terms(flow, target, **given, guided=guided)
    calls["flow"].clear(), calls["target"].clear()
    losses = []
    for offset in (0, 1):
        order = torch.tensor([0, 1, 2, 3]) ^ offset
        mine = {name: value[order] for name, value in given.items()}
        mine |= {name: mine[name][::2] for name in ("t", "s")}
        half = TerminalVelocityMatching.terms(flow, target, **mine, guided=guided)
        for name, value in half._asdict().items():
            expected = getattr(full, name)[order]
            torch.testing.assert_close(value, expected if name == "boundary" else expected[::2])
        losses.append(half.terminal.mean() + half.boundary.mean())
    torch.testing.assert_close(sum(losses) / 2, full.terminal.mean() + full.boundary.mean())
    # the derivative of 2 and the boundary of 4 samples; the target of 2 and, with guidance, of 4 more
    assert calls == {"flow": [2, 4] * 2, "target": [6 if guided else 2] * 2}


def test_parts_of_a_batch_choose_the_same_samples_to_jump(flow: FlowMap) -> None:
    objective = TerminalVelocityMatching(flow, guidance=UniformGuidance(1, 2), terminal_every=2)
    x0, label = draws(4)["x0"].repeat(2, 1, 1, 1), draws(4)["label"].repeat(2)
    objective.seed(3)
    whole = objective(x0, label)
    parts = []
    for first in (0, 4):
        objective.seed(3)
        parts.append(objective(x0[first : first + 4], label[first : first + 4], Part(first, 4, 8)))
    torch.testing.assert_close(sum(part.loss for part in parts) / 2, whole.loss)
    torch.testing.assert_close(torch.cat([part.samples[0].t for part in parts]), whole.samples[0].t)
    assert len(whole.samples[0].t) == 4
    with pytest.raises(ValueError, match="terminal_every=2 does not divide 3 of a batch of 8 samples"):
        objective(x0[:3], label[:3], Part(0, 3, 8))


def test_how_many_samples_jump_is_checked(flow: FlowMap) -> None:
    with pytest.raises(ValueError, match="terminal_every must be at least 1"):
        TerminalVelocityMatching(flow, terminal_every=0)
    with pytest.raises(ValueError, match="with terminal_every=2 most samples have no s"):
        TerminalVelocityMatching(flow, terminal_every=2, boundary_at_end=True)


def test_a_jump_of_length_zero_has_no_terminal_loss(flow: FlowMap, small_config) -> None:
    given = draws()
    given["s"] = torch.where(torch.arange(4) < 2, given["t"], given["s"])
    terms = TerminalVelocityMatching.terms(flow, target_of(flow, small_config), **given)
    assert not terms.terminal[:2].any()
    assert bool((terms.terminal[2:] > 0).all())


def test_weight_is_one_over_w_squared(flow: FlowMap, small_config) -> None:
    target, given = target_of(flow, small_config), draws()
    weighted = TerminalVelocityMatching.terms(flow, target, **given)
    plain = TerminalVelocityMatching.terms(flow, target, **given, weighted=False)
    torch.testing.assert_close(weighted.terminal * given["w"] ** 2, plain.terminal)
    torch.testing.assert_close(weighted.boundary * given["w"] ** 2, plain.boundary)


def test_no_gradient_reaches_the_target(flow: FlowMap, small_config) -> None:
    target = target_of(flow, small_config)
    terms = TerminalVelocityMatching.terms(flow, target, **draws())
    (terms.terminal + terms.boundary).sum().backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_unguided_training_skips_the_unconditional_call_and_gives_the_same_loss(flow: FlowMap, small_config) -> None:
    target, given = target_of(flow, small_config), draws()
    given["w"] = torch.ones_like(given["w"])
    calls = []
    target.network.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    full = TerminalVelocityMatching.terms(flow, target, **given)
    short = TerminalVelocityMatching.terms(flow, target, **given, guided=False)
    torch.testing.assert_close(full, short)
    assert calls == [8, 4]


def test_forward_is_a_pure_function_of_the_seed(flow: FlowMap) -> None:
    objective = TerminalVelocityMatching(flow, guidance=UniformGuidance(1, 2), jumps=Independent(Uniform()))
    x0, label = draws()["x0"], draws()["label"]
    losses = []
    for seed in (1, 1, 2):
        objective.seed(seed)
        losses.append(objective(x0, label).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_the_step_reports_its_parts(flow: FlowMap) -> None:
    objective = TerminalVelocityMatching(flow, guidance=FixedGuidance(2.0))
    step = objective(draws()["x0"], draws()["label"])
    assert set(step.terms) == {"terminal", "boundary"}
    torch.testing.assert_close(step.loss.detach(), sum(step.terms.values()))
    assert not any(value.requires_grad for value in step.terms.values())


def test_the_step_reports_its_samples_by_time(flow: FlowMap) -> None:
    objective = TerminalVelocityMatching(flow, guidance=FixedGuidance(2.0))
    objective.seed(0)
    step = objective(draws()["x0"], draws()["label"])
    jumps, boundary = step.samples
    for name, samples in (("terminal", jumps), ("boundary", boundary)):
        torch.testing.assert_close(samples.figures[name].mean(), step.terms[name])
    assert bool((jumps.t >= jumps.s).all())
    assert boundary.s is None
    tensors = [*jumps.figures.values(), *boundary.figures.values(), jumps.t, jumps.s, boundary.t]
    assert all(value.shape == (4,) and not value.requires_grad for value in tensors)


def test_norms_are_those_of_the_network_and_of_its_slope(flow: FlowMap) -> None:
    """Against central differences of the network itself."""
    given = draws()
    terms = TerminalVelocityMatching.terms(flow, flow, **given)
    t, s, label, w = (given[name] for name in ("t", "s", "label", "w"))
    time = t[:, None, None, None]
    x_t = (1 - time) * given["x0"] + time * given["noise"]
    with torch.no_grad():
        ahead, here, behind = (flow.network(x_t, t, s + h, label, w) for h in (1e-5, 0.0, -1e-5))
    slope = (t - s)[:, None, None, None] * (ahead - behind) / 2e-5
    torch.testing.assert_close(terms.output_rms, here.square().mean((1, 2, 3)).sqrt())
    torch.testing.assert_close(terms.slope_rms, slope.square().mean((1, 2, 3)).sqrt(), rtol=1e-5, atol=1e-8)


def test_a_network_that_overflows_gives_a_loss_that_is_not_finite(flow: FlowMap) -> None:
    """And no complaint about the data: the trainer skips such steps and counts them."""
    with torch.no_grad():
        flow.network.final.linear.bias[0] = float("inf")
    terms = TerminalVelocityMatching.terms(flow, flow, **draws())
    assert not bool(terms.terminal.isfinite().any())
