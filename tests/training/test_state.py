import copy
from pathlib import Path

import pytest
import torch

from tests.training.support import tiny_config
from tvmatch.data.digits import digits_source
from tvmatch.networks.mlp import MLPConfig
from tvmatch.training.checkpoint import HEADER, CheckpointError
from tvmatch.training.header import ema_prefix, network_from_header, network_to_header
from tvmatch.training.preparing import prepare
from tvmatch.training.ranks import Ranks
from tvmatch.training.saving import Saver
from tvmatch.training.state import TrainingState

ALONE = Ranks(torch.device("cpu"))
SOURCE = digits_source()


def fresh(seed: int = 0, **changes) -> TrainingState:
    return prepare(tiny_config(Path("unused"), seed=seed, **changes), SOURCE, ALONE)[0]


def train_a_little(state: TrainingState, steps: int = 2) -> TrainingState:
    """Steps on noise: every tensor of the state differs from a fresh one's."""
    x0 = torch.randn(4, 1, 8, 8)
    for _ in range(steps):
        state.objective(x0, torch.tensor([0, 1, 2, -1])).loss.backward()
        state.descend(torch.tensor(0.0), 0.9)
        state.optimizer.zero_grad()
    return state


def snapshot(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.tensors().items()}


def test_names() -> None:
    state = fresh()
    kinds = {name.split(".network.")[0] for name in state.tensors()}
    assert kinds == {"flow", "target", "ema.0.5", "ema.0.9", "skipped.total", "skipped.in_a_row"}
    kinds = {name.split(".network.")[0] for name in train_a_little(state).tensors()}
    assert kinds == {
        *("flow", "target", "ema.0.5", "ema.0.9"),
        *("optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq"),
        *("skipped.total", "skipped.in_a_row"),
    }


def test_decays_that_are_nearly_equal_or_nearly_1_keep_their_own_names() -> None:
    decays = (0.0, 1e-5, 0.9999991, 0.9999992, 0.99999999)
    assert [float(ema_prefix(decay)[4:-1]) for decay in decays] == list(decays)
    state = fresh(evaluation_ema=decays)
    weights = len(state.objective.flow.state_dict())
    for decay in decays:  # the prefix of one is not the beginning of another's
        assert sum(name.startswith(ema_prefix(decay)) for name in state.tensors()) == weights


def save(tensors: dict[str, torch.Tensor], run: Path) -> Path:
    saver = Saver(run, 2, ALONE)
    path = saver.start(2, tensors, dict.fromkeys(HEADER))
    saver.wait()
    saver.close()
    return path


def test_load_restores_every_bit_and_training_goes_on_alike(tmp_path: Path) -> None:
    first = train_a_little(fresh())
    saved = snapshot(first)
    second = train_a_little(fresh(seed=1), 1)
    second.load(save(saved, tmp_path), 2)
    assert second.step == 2
    assert snapshot(second).keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in second.tensors().items())
    for state in (first, second):
        torch.manual_seed(5)
        state.objective.seed(5)
        train_a_little(state)
    assert all(torch.equal(value, first.tensors()[name]) for name, value in second.tensors().items())


def test_step_0_has_no_optimiser_state(tmp_path: Path) -> None:
    saved = snapshot(fresh())
    state = train_a_little(fresh(seed=1))
    state.load(save(saved, tmp_path), 0)
    assert not state.optimizer.state
    assert state.tensors().keys() == saved.keys()


def remove(tensors: dict, start: str) -> str:
    name = next(name for name in tensors if name.startswith(start))
    del tensors[name]
    return name


@pytest.mark.parametrize("kind", ["flow.", "target.", "ema.0.9.", "optimizer.exp_avg.", "optimizer.step."])
def test_something_missing_or_misshapen_is_named_and_nothing_is_loaded(tmp_path: Path, kind: str) -> None:
    saved = snapshot(train_a_little(fresh()))
    state = train_a_little(fresh(seed=1), 3)
    before = snapshot(state)

    lacking = copy.copy(saved)
    missing = remove(lacking, kind)
    misshapen = copy.copy(saved)
    bent = [name for name in saved if name.startswith(kind)][-1]
    misshapen[bent] = torch.zeros(3, 1, 4)
    extra = saved | {f"{kind}else": torch.zeros(1)}
    for number, (tensors, message) in enumerate(
        (
            (lacking, rf"is of another architecture or objective: it lacks {missing}"),
            (extra, rf"it has {kind}else \(and 0 more\), which is unknown here"),
            (misshapen, rf"{bent} has shape \[3, 1, 4\], this network needs"),
        )
    ):
        path = save(tensors, tmp_path / str(number))
        with pytest.raises(CheckpointError, match=message):
            state.load(path, 2)
        assert state.step == 3
        after = state.tensors()
        assert after.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_skipped_steps_are_restored(tmp_path: Path) -> None:
    state = train_a_little(fresh())
    for bad in (1.0, float("nan"), float("nan")):
        state.skipped.decide(torch.tensor(bad))
    loaded = fresh()
    loaded.load(save(snapshot(state), tmp_path), 2)
    assert (int(loaded.skipped.total), int(loaded.skipped.in_a_row)) == (2, 2)


def test_other_averages_are_another_objective(tmp_path: Path) -> None:
    saved = snapshot(train_a_little(fresh(evaluation_ema=(0.5, 0.99))))
    with pytest.raises(CheckpointError, match=r"lacks ema\.0\.9\..*it has ema\.0\.99\."):
        fresh().load(save(saved, tmp_path), 2)


def test_network_in_the_header() -> None:
    config = fresh().objective.flow.network.config
    assert network_from_header(network_to_header(config), "a checkpoint") == config
    points = MLPConfig(2, hidden_size=32)
    assert network_from_header(network_to_header(points), "a checkpoint") == points
    for values in (None, {"hidden_size": 16, "wings": 2}, {"depth": 0}):
        with pytest.raises(CheckpointError, match="a checkpoint describes a network that this version does not know"):
            network_from_header(values, "a checkpoint")
