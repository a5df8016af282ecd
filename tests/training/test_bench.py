"""The step that is measured is the loop's: the same operators, and the same weights after it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.support import TINY, steps_of_a_run, tiny_config, tiny_network
from tvmatch.data.source import to_network_range
from tvmatch.objectives import StepLoss
from tvmatch.training import loop
from tvmatch.training.bench import BenchStep, StepCase, measure_step
from tvmatch.training.config import ObjectiveName, OptimizerName
from tvmatch.training.loop import step_seed
from tvmatch.training.ranks import Ranks
from tvmatch.training.step_gradient import StepGradient

BATCH = 8


class Counting(TorchDispatchMode):
    """How often each operator is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operators(act: Callable[[], Any]) -> Counter[str]:
    with Counting() as counting:
        act()
    return counting.calls


def case(**changes: Any) -> StepCase:
    return StepCase(TINY, 8, 1, BATCH, classes=10, **changes)


def bench_step(**changes: Any) -> BenchStep:
    with tiny_network():
        return BenchStep(case(**changes), Ranks(torch.device("cpu")))


@pytest.mark.parametrize(
    ("objective", "optimizer"),
    [("terminal-velocity", "adamw"), ("terminal-velocity", "muon"), ("flow-matching", "adamw"), ("mean-flow", "adamw")],
)
def test_it_calls_the_operators_of_the_loops_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: ObjectiveName, optimizer: OptimizerName
) -> None:
    monkeypatch.setattr(loop._Run, "look", lambda self: None)  # on a CPU only
    measured = bench_step(objective=objective, optimizer=optimizer)
    options = {"objective": objective, "optimizer": optimizer, "batch_size": BATCH, "guidance": "2"}
    options = tiny_config(tmp_path / "run", **options)
    with tiny_network(), steps_of_a_run(options) as (run, images, label):
        for number in range(4):  # until tangents have been seen to arrive
            run.step(images, label)
            measured(number)
        ours = operators(lambda: measured(4))
        theirs = operators(lambda: run.step(images, label))
        # the loop's data are bytes, cut into micro-steps, and its method may follow the progress of the training
        theirs -= operators(lambda: (to_network_range(images[:]), label[:], run.objective.advance(0.5)))
    assert ours == theirs


def test_it_ends_with_the_loops_own_weights(tmp_path: Path) -> None:
    options = {"batch_size": BATCH, "guidance": "2", "learning_rate": 1e-4, "warmup_steps": 0, "beta2": 0.95}
    with tiny_network(), steps_of_a_run(tiny_config(tmp_path / "run", **options)) as (run, images, label):
        measured = bench_step()
        measured.state.objective.load_state_dict(run.objective.state_dict())
        measured.x0, measured.label = to_network_range(images), label
        for number in range(3):
            measured(step_seed(0, number))
            run.step(images, label)
        theirs = run.state.tensors()
        ours = measured.state.tensors()
    compared = [name for name in ours if not name.startswith("ema.")]  # of other initial weights and decays
    assert {name.split(".")[0] for name in compared} == {"flow", "target", "optimizer", "skipped"}
    assert all(torch.equal(ours[name], theirs[name]) for name in compared)


def test_steps_that_were_skipped_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = StepGradient._launch

    def spoiled(self: StepGradient, *arguments: Any) -> StepLoss:
        result = launch(self, *arguments)
        return result._replace(loss=result.loss * float("nan")) if self.launched == 2 else result

    with tiny_network():
        assert measure_step(case(), Ranks(torch.device("cpu")), 1.0, steps=1)["skipped_steps"] == 0
        monkeypatch.setattr(StepGradient, "_launch", spoiled)
        assert measure_step(case(), Ranks(torch.device("cpu")), 1.0, steps=1)["skipped_steps"] == 1
