import pytest
import torch

from tests.test_flow_map import GaussianNetwork
from tvmatch.flow_map import FlowMap
from tvmatch.sampling import consistency, draw, euler, sample, seeded_noise


def gaussian() -> FlowMap:
    return FlowMap(GaussianNetwork(0.5))


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_any_number_of_exact_jumps_lands_on_the_data(steps: int) -> None:
    noise = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(sample(gaussian(), noise, w=2.0, steps=steps), 0.5 * noise)


def test_own_grid_and_scales_for_each_sample() -> None:
    noise = torch.randn(3, 2, dtype=torch.float64)
    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(sample(gaussian(), noise, w=w, times=[1.0, 0.7, 0.1, 0.0]), 0.5 * noise)


def test_euler_converges_to_the_flow_at_first_order() -> None:
    noise = torch.randn(6, 2, dtype=torch.float64)
    errors = [float((euler(gaussian(), noise, steps=n) - 0.5 * noise).norm()) for n in (32, 64)]
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_draw_does_not_depend_on_the_batches(flow: FlowMap) -> None:
    label = torch.tensor([0, 1, 2, -1, 0])
    whole = draw(flow, label, 1.5, 2, seed=3)
    torch.testing.assert_close(whole, draw(flow, label, 1.5, 2, seed=3, batch_size=2))
    assert not torch.equal(whole, draw(flow, label, 1.5, 2, seed=4))


def test_noise_belongs_to_seed_and_index() -> None:
    assert torch.equal(seeded_noise(5, [7, 8], (3,))[1:], seeded_noise(5, [8], (3,)))
    assert not torch.equal(seeded_noise(5, [8], (3,)), seeded_noise(6, [8], (3,)))
    big = seeded_noise(0, range(2000), (8,))
    assert abs(float(big.mean())) < 0.02
    assert abs(float(big.std()) - 1) < 0.02


def test_bad_requests_are_named(flow: FlowMap) -> None:
    noise = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    for keywords, message in (
        ({"label": 3}, "labels must be"),
        ({"w": 0.0}, "w must be positive"),
        ({"steps": 0}, "at least 1 step"),
        ({"times": [1.0, 0.5]}, "grid"),
        ({"label": torch.tensor([1, 2, 0])}, r"label must have shape \[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(flow, noise, **keywords)
    with pytest.raises(ValueError, match="method"):
        draw(flow, torch.tensor([0]), 1.0, 1, method="heun")


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_sampling_keeps_the_distribution_with_fresh_noise(steps: int) -> None:
    noise = torch.randn(4000, 2, dtype=torch.float64)
    x = consistency(gaussian(), noise, steps=steps)
    assert float(x.std()) == pytest.approx(0.5, rel=0.03)
    again = consistency(gaussian(), noise, steps=steps, fresh=lambda call: torch.zeros_like(noise))
    # without noise each further call starts from (1 - s) x_0 instead of from x_s
    expected = 0.5 * noise
    for k in range(1, steps):
        s = 1 - k / steps
        expected = 0.5 * (1 - s) * expected / (0.25 * (1 - s) ** 2 + s**2) ** 0.5
    torch.testing.assert_close(again, expected)


def test_consistency_sampling_draws_alike_in_any_batches(flow: FlowMap) -> None:
    label = torch.tensor([0, 1, 2, -1, 0])
    whole = draw(flow, label, 1.5, 3, seed=3, method="consistency")
    torch.testing.assert_close(whole, draw(flow, label, 1.5, 3, seed=3, batch_size=2, method="consistency"))
    assert not torch.equal(seeded_noise(3, [0], (4,)), seeded_noise(3, [0], (4,), call=1))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_seeds_that_would_be_rounded_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="the seed must be from 0 to"):
        seeded_noise(seed, [0], (2,))
    assert not torch.equal(seeded_noise(2**63 - 1, [0], (2,)), seeded_noise(2**63 - 2, [0], (2,)))
    with pytest.raises(TypeError):
        seeded_noise(1.9, [0], (2,))


def test_drawing_nothing_is_refused(flow: FlowMap) -> None:
    with pytest.raises(ValueError, match="label is empty"):
        draw(flow, torch.zeros(0, dtype=torch.int64), 1.0, 1)
