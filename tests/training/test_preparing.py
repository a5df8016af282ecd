"""Options that data or other options give nothing to do: refused for a new run, taken where an earlier one goes on."""

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from tests.data.test_encoding import encode, source
from tests.training.support import tiny_config
from tvmatch.data.arrays import source_from_arrays
from tvmatch.data.codecs import CodecError
from tvmatch.data.source import DataError
from tvmatch.training.build import check_label_dropout
from tvmatch.training.config import ObjectiveName, TrainConfig, to_yaml
from tvmatch.training.loop import train
from tvmatch.training.trained import load_run

LABELS = np.arange(4) % 2


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.0, "label_dropout 0: guidance 1:2 asks for the velocity without a class, .*; give --label-dropout 0.1"),
        (1.0, "label_dropout 1: without a class w is 1, so guidance 1:2 would do nothing; give --label-dropout 0.1"),
    ],
)
def test_guidance_that_cannot_be_learned_is_refused(
    tmp_path: Path, objective: ObjectiveName, share: float, message: str
) -> None:
    source = source_from_arrays(np.zeros((4, 8, 8, 1), np.uint8), LABELS)
    config = tiny_config(tmp_path / "run", objective=objective, guidance="1:2", label_dropout=share, steps=1)
    with pytest.raises(ValueError, match=message):
        train(config, source=source, show=False)
    assert not config.run.exists()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_run_whose_guidance_is_not_learned_goes_on(tmp_path: Path, share: float) -> None:
    """Earlier versions began it, and what it trains with stays what it was. Without guidance any share is right."""
    source = source_from_arrays(np.zeros((4, 8, 8, 1), np.uint8), LABELS)
    config = tiny_config(tmp_path / "run", label_dropout=share, steps=2)
    train(dataclasses.replace(config, guidance="1"), source=source, show=False)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    train(dataclasses.replace(config, steps=4), source=source, show=False)
    assert load_run(tmp_path / "run").step == 4


def test_samples_without_a_class_teach_what_guidance_asks_for() -> None:
    config = TrainConfig(guidance="2", label_dropout=0.0)
    check_label_dropout(config, np.array([0, -1, 1]))
    check_label_dropout(dataclasses.replace(config, guidance="1.5", label_dropout=0.1), np.array([0, 1]))
    with pytest.raises(ValueError, match="label_dropout 0: guidance 2"):
        check_label_dropout(config, np.array([0, 1]))


@pytest.mark.parametrize("labels", [LABELS, None])
@pytest.mark.parametrize(
    ("objective", "name"),
    [("terminal-velocity", "scaled"), ("terminal-velocity", "weighted"), ("mean-flow", "scaled")],
)
def test_what_goes_by_w_is_refused_where_w_is_always_1_but_an_earlier_run_goes_on(
    tmp_path: Path, objective: ObjectiveName, name: str, labels: np.ndarray | None
) -> None:
    source = source_from_arrays(np.zeros((4, 8, 8, 1), np.uint8), labels)
    guidance = "1.5" if labels is None else "1.0"  # without classes the default is 1 all the same
    config = tiny_config(tmp_path / "run", objective=objective, guidance=guidance, steps=2)
    vain = dataclasses.replace(config, **{name: False})
    with pytest.raises(ValueError, match=f"{name}=False does nothing where w is always 1; leave it out"):
        train(vain, source=source, show=False)
    assert not config.run.exists()
    train(config, source=source, show=False)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(vain))
    train(dataclasses.replace(vain, steps=4), source=source, show=False)
    assert load_run(tmp_path / "run").step == 4
    if labels is not None:
        train(dataclasses.replace(vain, run=tmp_path / "guided", guidance="1:2"), source=source, show=False)


def test_mirrored_latents_that_were_not_encoded_leave_no_folder_that_refuses_the_remedy(tmp_path: Path) -> None:
    encode(source(), tmp_path / "latents", flips=False)
    config = tiny_config(tmp_path / "run", data=str(tmp_path / "latents"), flip=True, steps=1)
    with pytest.raises(DataError, match=r"mirrored pictures were not encoded .*or train with --no-flip"):
        train(config, show=False)
    assert not config.run.exists()
    assert train(dataclasses.replace(config, flip=False), show=False).complete


def test_a_codec_that_has_moved_is_told_with_what_training_can_do(tmp_path: Path) -> None:
    encode(source(), tmp_path / "latents")  # with a codec that is nowhere
    config = tiny_config(tmp_path / "run", data=str(tmp_path / "latents"), sample_every=1, steps=1)
    with pytest.raises(CodecError, match=r"put it back, or train with --sample-every 0") as raised:
        train(config, show=False)
    assert "--codec" not in str(raised.value)  # which `train` does not have
    assert train(dataclasses.replace(config, sample_every=0), show=False).complete
