"""A run that begins with the weights of another: all of them, of the same architecture, each class as itself."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.test_encoding import Spread, encode
from tests.data.test_encoding import source as pictures
from tests.training.support import last_tensors, tiny_config
from tvmatch.data.arrays import source_from_arrays
from tvmatch.data.source import Source
from tvmatch.training.checkpoint import CheckpointError
from tvmatch.training.loop import train

LABELS = np.arange(4) % 2


def named(*names: str) -> Source:
    return source_from_arrays(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % max(len(names), 1), names)


def test_a_start_from_the_average_of_another_run(tmp_path: Path) -> None:
    """With a learning rate of almost nothing, what comes out is what went in."""
    given = tiny_config(tmp_path / "given", objective="flow-matching", learning_rate=1e-2, steps=4)
    train(given, show=False)
    config = tiny_config(tmp_path / "run", initial=str(given.run), learning_rate=1e-20, warmup_steps=0, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tvmatch.networks.modulated.init_spectral_", None
        )  # initial weights are not made to be thrown away
        train(config, show=False)
    before, after = last_tensors(given.run), last_tensors(config.run)
    names = [name.removeprefix("ema.0.9.") for name in before if name.startswith("ema.0.9.")]
    assert names
    for name in names:
        assert torch.equal(before[f"ema.0.9.{name}"], after[f"flow.{name}"])
    # continued, it asks for that run no longer
    train(dataclasses.replace(config, steps=3), show=False)
    with pytest.raises(CheckpointError, match=r"is of another architecture: .*, scaled True; not "):
        train(tiny_config(tmp_path / "other", initial=str(given.run), scaled=False), show=False)


def test_unscaled_weights_of_another_run_go_on_without_guidance(tmp_path: Path) -> None:
    source = source_from_arrays(np.zeros((4, 8, 8, 1), np.uint8), LABELS)
    given = tiny_config(tmp_path / "given", scaled=False, steps=1)
    train(given, source=source, show=False)
    config = tiny_config(tmp_path / "run", scaled=False, guidance="1", initial=str(given.run), steps=1)
    train(config, source=source, show=False)


def test_first_weights_of_another_run_may_have_been_made_otherwise(tmp_path: Path) -> None:
    source = source_from_arrays(np.zeros((4, 8, 8, 1), np.uint8), LABELS)
    given = tiny_config(tmp_path / "given", initialisation="xavier", steps=1)
    train(given, source=source, show=False)
    config = tiny_config(tmp_path / "run", initial=str(given.run), steps=1)
    train(config, source=source, show=False)
    message = "initialisation=xavier does nothing with --initial .*given, from which all weights come; leave it out"
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, run=tmp_path / "other", initialisation="xavier"), source=source, show=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(CheckpointError, match="is of another architecture"):
        train(dataclasses.replace(config, run=tmp_path / "other", qk_norm=False), source=source, show=False)


def test_the_same_classes_under_other_numbers_are_refused(tmp_path: Path) -> None:
    """Each would begin with the embedding of another, and only worse samples would show it."""
    given = tiny_config(tmp_path / "given", steps=1)
    train(given, source=named("cat", "dog"), show=False)
    config = tiny_config(tmp_path / "run", initial=str(given.run), steps=1)
    message = r"given has the same classes under other numbers: 'dog' is 1 there and 0 here. Bring .* 'cat', 'dog'"
    with pytest.raises(CheckpointError, match=message):
        train(config, source=named("dog", "cat"), show=False)
    assert not config.run.exists()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("cat", "dog"), None),
        (("cat", "horse"), "1 of 2 classes are others (number 1 was 'dog' and is 'horse' now)."),
        (("0", "1"), "2 of 2 classes are others (number 0 was 'cat' and is '0' now)."),
    ],
)
def test_other_classes_are_told_and_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture, names: tuple[str, ...], told: str | None
) -> None:
    given = tiny_config(tmp_path / "given", steps=1)
    train(given, source=named("cat", "dog"), show=False)
    config = tiny_config(tmp_path / "run", initial=str(given.run), steps=1)
    capsys.readouterr()
    train(config, source=named(*names))
    said = " ".join(capsys.readouterr().err.split())
    assert ("learned other data" in said) == (told is not None)
    assert told is None or f"given learned other data: {told}" in said
    train(dataclasses.replace(config, steps=2), source=named(*names))
    assert "learned other data" not in capsys.readouterr().err  # it goes on with its own weights


def test_latents_of_another_codec_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    encode(pictures(), tmp_path / "latents")
    given = tiny_config(tmp_path / "given", data=str(tmp_path / "latents"), steps=1)
    train(given, show=False)
    config = tiny_config(tmp_path / "run", data=given.data, initial=str(given.run), steps=1)
    train(config)
    assert "learned other data" not in capsys.readouterr().err
    other = Spread()
    other.spec, other.hash = "other", "6" * 64
    encode(pictures(), tmp_path / "others", other)
    train(dataclasses.replace(config, run=tmp_path / "run2", data=str(tmp_path / "others")))
    said = " ".join(capsys.readouterr().err.split())
    assert "given learned other data: it drew latents of spread, and these are of other." in said
