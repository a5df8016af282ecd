"""Every option that an ablation varies reaches what it is about, and is refused where it would be ignored."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.training.support import tiny_config, tiny_network
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.training import build, loop
from tvmatch.training.build import JUMPS, build_flow, build_objective, network_shape
from tvmatch.training.config import JumpName, TrainConfig
from tvmatch.training.trained import load_run


def objective(**changes: object) -> TerminalVelocityMatching:
    config = TrainConfig(**changes)
    return build_objective(config, build_flow(config, network_shape(config, 8, 1, 10)))


def test_the_jumps_have_the_gaps_that_their_names_say() -> None:
    assert set(JUMPS) == set(get_args(JumpName))
    gaps = {}
    for name in set(JUMPS) - {"auto"}:
        t, s = objective(jumps=name).jumps(20_000, torch.Generator().manual_seed(0))
        gaps[name] = float((t - s).median())
    assert (
        gaps["near"] < 0.1 < gaps["logit-normal"] < gaps["truncated-gap"] < gaps["to-data"] < gaps["wide"] < gaps["far"]
    )
    assert gaps["wide"] == pytest.approx(0.5, abs=0.01)
    assert gaps["far"] > 0.7
    assert gaps["uniform"] == pytest.approx(1 - 0.5**0.5, abs=0.01)


def test_how_many_jumps_are_long_and_short() -> None:
    """The shares that docs/ablations.md gives as the reason for `wide`."""
    long, short = {}, {}
    for name in ("truncated-gap", "wide", "far"):
        t, s = objective(jumps=name).jumps(400_000, torch.Generator().manual_seed(0))
        long[name] = float(((t > 0.95) & (s < 0.2)).float().mean())
        short[name] = float((t - s < 0.3).float().mean())
    assert (long["truncated-gap"], long["wide"]) == pytest.approx((0.011, 0.064), abs=1e-3)
    assert (short["wide"], short["far"]) == pytest.approx((0.20, 0.03), abs=5e-3)


@pytest.mark.parametrize("at_end", [True, False])
def test_the_boundary_time_is_the_end_of_the_jump_if_asked(at_end: bool) -> None:
    method = objective(boundary_at_end=at_end)
    jumps, boundary = method(torch.randn(6, 1, 8, 8), torch.arange(6)).samples
    assert torch.equal(boundary.t, jumps.s) == at_end


@pytest.mark.parametrize(
    "change", [{"norm": "layer"}, {"qk_norm": False}, {"modulation_norm": False}, {"initialisation": "xavier"}]
)
def test_a_run_has_the_network_that_was_asked_for_and_its_checkpoint_says_so(change: dict, tmp_path: Path) -> None:
    config = replace(tiny_config(tmp_path / "run"), steps=2, **change)
    with tiny_network():
        loop.train(config, show=False)
        network = load_run(config.run).flow.network.config
    for name in build.NETWORK_OPTIONS:
        assert getattr(network, name) == change.get(name, getattr(TrainConfig(), name))


def test_fewer_jumps_train_and_must_share_the_batch_evenly(tmp_path: Path) -> None:
    config = replace(tiny_config(tmp_path / "run"), steps=2, batch_size=8)
    with tiny_network():
        with pytest.raises(ValueError, match=r"terminal_every=4 must divide the 2 samples .* of batch_size=8"):
            loop.train(replace(config, terminal_every=4, accumulate=4), show=False)
        assert not config.run.exists()
        assert loop.train(replace(config, terminal_every=4), show=False).step == 2


@pytest.mark.parametrize("name", ["flow-matching", "mean-flow"])
def test_other_methods_refuse_the_boundary_option(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no option boundary_at_end"):
        objective(objective=name, boundary_at_end=True)
