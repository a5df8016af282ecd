"""Every method by its name: built from a configuration, trained by the loop, counted by the benchmark."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.training.support import tiny_config, tiny_network
from tvmatch.networks.presets import network_config
from tvmatch.objectives import AlphaFlow, FewStepObjective
from tvmatch.training.bench import FORWARD_PASSES
from tvmatch.training.build import FEW_STEP, build_flow, build_objective
from tvmatch.training.config import ObjectiveName, TrainConfig
from tvmatch.training.loop import train


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_every_name_gives_an_objective_with_a_gradient(name: ObjectiveName) -> None:
    config = TrainConfig(objective=name, guidance="1:3")
    objective = build_objective(config, build_flow(config, network_config("DiT-Digits/4", 8, 1, 10)))
    objective(torch.randn(8, 1, 8, 8), torch.arange(8)).loss.backward()
    gradients = [parameter.grad for parameter in objective.flow.parameters()]
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert isinstance(objective, FewStepObjective) == (name in FEW_STEP)
    assert FORWARD_PASSES[name] >= 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "mean-flow", "detach_jvp": True}, "mean-flow has no option detach_jvp"),
        ({"objective": "split-mean-flow", "weighted": False}, "split-mean-flow has no option weighted"),
        ({"objective": "mean-flow", "target_ema": 0.9}, "mean-flow has no option target_ema"),
        ({"objective": "shortcut", "jumps": "uniform"}, "shortcut has no option jumps"),
        ({"objective": "flow-matching", "jumps": "uniform"}, "flow-matching has no option jumps"),
        # its target gives the unconditional velocity, for which nobody asks where w is always 1
        ({"objective": "flow-matching", "guidance": "1", "target_ema": 0.5}, "flow-matching has no option target_ema"),
    ],
)
def test_no_option_is_ignored(changes: dict, message: str) -> None:
    config = TrainConfig(**changes)
    with pytest.raises(ValueError, match=message):
        build_objective(config, build_flow(config, network_config("DiT-Digits/4", 8, 1, 10)))


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_without_classes_no_step_asks_for_guidance(name: ObjectiveName) -> None:
    """The unconditional velocity would be paid for, and multiplied by 1 - w = 0."""
    for guidance in ("1.5", "1", "1.0"):  # the default is that of data with classes
        config = TrainConfig(objective=name, guidance=guidance, label_dropout=0.0)
        objective = build_objective(config, build_flow(config, network_config("DiT-Digits/4", 8, 1, 0)))
        asked = []
        for flow in (objective.flow, *([] if objective.target is None else [objective.target])):
            flow.unconditional_velocity = lambda *_, asked=asked: asked.append(1)
        objective(torch.randn(8, 1, 8, 8), torch.full((8,), -1)).loss.backward()
        assert not asked
        assert objective.guidance.always_one  # TVM asks for both of its velocities in one call


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": "3"}, "guidance 3: without classes w must be 1, .*; leave it out or give --guidance 1"),
        ({"guidance": "1:2"}, "guidance 1:2: without classes w must be 1"),
        ({"label_dropout": 0.5}, "label_dropout 0.5: this data has no classes to hide; .* --label-dropout 0"),
    ],
)
def test_what_would_do_nothing_without_classes(changes: dict, message: str) -> None:
    config = TrainConfig(**changes)
    with pytest.raises(ValueError, match=message):
        build_objective(config, build_flow(config, network_config("DiT-Digits/4", 8, 1, 0)))
    build_objective(config, build_flow(config, network_config("DiT-Digits/4", 8, 1, 10)))


def test_the_loop_tells_a_curriculum_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, advance = [], AlphaFlow.advance
    monkeypatch.setattr(AlphaFlow, "advance", lambda self, progress: told.append(progress) or advance(self, progress))
    config = tiny_config(tmp_path / "run", objective="alpha-flow")
    with tiny_network():
        train(config, show=False)
    assert told == [step / config.steps for step in range(config.steps)]
