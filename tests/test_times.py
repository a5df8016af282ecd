import pytest
import torch
from scipy import stats

from tvmatch.times import Independent, LogitNormal, ToData, TruncatedGap, Uniform, check_grid, uniform_grid

SCHEMES = [
    TruncatedGap(),
    Independent(Uniform()),
    Independent(LogitNormal()),
    TruncatedGap(3.0, 2.0, 4.0, 0.5),
    ToData(Uniform()),
]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_jumps_go_down_inside_the_unit_interval(scheme) -> None:
    t, s = scheme(20_000, generator())
    assert t.dtype == s.dtype == torch.float32
    assert bool((s <= t).all())
    assert bool((s >= 0).all())
    assert bool((t <= 1).all())
    assert torch.isfinite(torch.stack([t, s])).all()


def test_the_same_seed_draws_the_same_times() -> None:
    for first, second in zip(TruncatedGap()(9, generator()), TruncatedGap()(9, generator()), strict=True):
        assert torch.equal(first, second)


def test_gap_has_the_distribution_that_its_name_says() -> None:
    t, s = TruncatedGap()(20_000, generator())
    logit = torch.logit((t - s).double())
    assert stats.kstest(logit.numpy(), stats.norm(-0.8, 1.0).cdf).pvalue > 1e-3


def test_end_time_is_logit_normal_truncated_by_the_gap() -> None:
    """Against rejection: draw s freely, keep what fits under 1 - gap, with the same gaps."""
    scheme = TruncatedGap(gap_mean=0.0, gap_deviation=1e-6)  # every gap is 1/2
    _, s = scheme(20_000, generator())
    free = torch.sigmoid(-0.4 + torch.randn(80_000, generator=generator()))
    kept = free[free <= 0.5]
    assert stats.ks_2samp(s.numpy(), kept.numpy()).pvalue > 1e-3
    assert s.max() <= 0.5 + 1e-6


def test_jumps_to_data_end_there() -> None:
    t, s = ToData(LogitNormal())(100, generator())
    assert not s.any()
    assert torch.equal(t, LogitNormal()(100, generator()))


def test_logit_normal_is_logit_normal() -> None:
    r = LogitNormal(-0.4, 1.0)(20_000, generator())
    assert stats.kstest(torch.logit(r.double()).numpy(), stats.norm(-0.4, 1.0).cdf).pvalue > 1e-3


def test_uniform_grid_runs_from_noise_to_data() -> None:
    assert uniform_grid(1) == [1, 0]
    assert uniform_grid(4) == [1, 0.75, 0.5, 0.25, 0]
    with pytest.raises(ValueError, match="at least 1 step"):
        uniform_grid(0)


@pytest.mark.parametrize(
    "grid", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [0.9, 0.0], [1.0, 0.1], [1.0, float("nan"), 0.0]]
)
def test_bad_grids_are_refused(grid: list[float]) -> None:
    with pytest.raises(ValueError, match="grid"):
        check_grid(grid)
