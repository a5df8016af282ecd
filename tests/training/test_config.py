import math
from pathlib import Path

import pytest

from tvmatch.training.config import TrainConfig, from_yaml, to_yaml


def test_yaml_keeps_every_field() -> None:
    config = TrainConfig(
        run=Path("runs/with space/v1.5 ü"),
        data="pictures: odd # name",
        image_size=32,
        flip=True,
        guidance="1:3",
        learning_rate=1e-5,
        clip_gradient=math.inf,
        evaluation_ema=(0.0, 0.9999999),
        seed=2**63 - 1,
    )
    assert from_yaml(to_yaml(config), "config.yaml") == config
    assert from_yaml(to_yaml(TrainConfig()), "config.yaml") == TrainConfig()


def test_yaml_may_leave_fields_out() -> None:
    assert from_yaml("steps: 7\nrun: runs/x", "config.yaml") == TrainConfig(steps=7, run=Path("runs/x"))


def test_whole_numbers_serve_as_floats() -> None:
    config = TrainConfig(learning_rate=1, evaluation_ema=(0,))
    assert config == TrainConfig(learning_rate=1.0, evaluation_ema=(0.0,))
    assert isinstance(config.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "config.yaml: unknown key 'stepz'; did you mean steps"),
        ("xyzzy: 3", "unknown key 'xyzzy'"),
        ("steps: ten", "config.yaml: steps must be a whole number, got 'ten'"),
        ("steps: 10.5", "steps must be a whole number, got 10.5"),
        ("steps: true", "steps must be a whole number, got True"),
        ("steps: null", "steps must be a whole number, got None"),
        ("steps: 0", "config.yaml: steps must be at least 1, got 0"),
        (
            "fsdp_gather: use",
            "fsdp_gather=use says when --strategy fsdp gathers weights, and strategy is auto; leave it",
        ),
        ("image_size: big", "image_size must be a whole number or null, got 'big'"),
        ("evaluation_ema: 0.9", r"evaluation_ema must be a list of numbers, got 0\.9"),
        ("evaluation_ema: [0.9, high]", r"evaluation_ema must be a list of numbers, got \(0\.9, 'high'\)"),
        ("evaluation_ema: []", "evaluation_ema must be one decay or more"),
        (
            "learning_rate: 1e-3",
            r"learning_rate must be a number \(in YAML write 1\.0e-3, with the point\), got '1e-3'",
        ),
        ("learning_rate: [1]", r"learning_rate must be a number, got \[1\]"),
        ("flip: 'no'", "flip must be true or false, got 'no'"),
        ("flip: 1", "flip must be true or false, got 1"),
        ("run: 5", "run must be a path, got 5"),
        ("guidance: 1.5", r"guidance must be text \(in YAML put it in quotes\), got 1\.5"),
        ("objective: flow", "objective must be terminal-velocity or flow-matching or mean-flow or .*, got .flow."),
        (
            "jumps: [uniform]",
            "jumps must be auto or truncated-gap or near or wide or far or to-data or logit-normal or uniform",
        ),
        ("- 1", "config.yaml holds no configuration"),
        ("", "config.yaml holds no configuration"),
        ("steps: [", "config.yaml is not YAML"),
    ],
)
def test_bad_yaml_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_yaml(text, "config.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
        ({"sample_every": -1}, "sample_every must be 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ({"weight_decay": -0.1}, r"weight_decay must be 0 or more, got -0\.1"),
        ({"weight_decay": math.inf}, "weight_decay must be finite"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"seed": 2**63}, r"seed must be below 2\^63"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, got nan"),
        ({"learning_rate": math.inf}, "learning_rate must be finite"),
        ({"clip_gradient": 0.0}, "clip_gradient must be above 0"),
        ({"clip_gradient": math.nan}, "clip_gradient must be above 0, got nan"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\)"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\)"),
        ({"target_ema": 1.0}, r"target_ema must be in \[0, 1\), got 1\.0"),
        ({"label_dropout": 1.1}, r"label_dropout must be in \[0, 1\], got 1\.1"),
        ({"label_dropout": math.nan}, "label_dropout must be in"),
        ({"evaluation_ema": ()}, "evaluation_ema must be one decay or more"),
        ({"evaluation_ema": (0.9, 1.0)}, r"evaluation_ema must be in \[0, 1\), got 1\.0"),
        ({"evaluation_ema": (0.9, 0.9)}, "evaluation_ema must be without repetition"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"guidance": "much"}, "guidance 'much': give a scale"),
        ({"guidance": "0"}, "guidance '0'.*must be positive"),
        ({"guidance": "3:1"}, "guidance '3:1'.*low < high"),
        ({"objective": "diffusion"}, "objective must be terminal-velocity or .*, got 'diffusion'"),
        ({"steps": "ten"}, "steps must be a whole number, got 'ten'"),
        ({"run": "runs/x"}, "run must be a path, got 'runs/x'"),
    ],
)
def test_values_out_of_range_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)
