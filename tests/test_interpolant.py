import torch

from tvmatch.interpolant import conditional_velocity, interpolate, per_sample


def test_ends_are_data_and_noise() -> None:
    x0, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(interpolate(x0, noise, torch.zeros(2)), x0)
    torch.testing.assert_close(interpolate(x0, noise, torch.ones(2)), noise)


def test_velocity_is_the_time_derivative() -> None:
    x0, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    _, slope = torch.func.jvp(lambda t: interpolate(x0, noise, t), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(slope, conditional_velocity(x0, noise))


def test_per_sample_broadcasts_over_the_rest() -> None:
    assert per_sample(torch.ones(5), torch.ones(5, 3, 8, 8)).shape == (5, 1, 1, 1)
