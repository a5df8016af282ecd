"""Objectives with weights of their own: trained, kept in checkpoints, and continued to the same bits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.support import assert_same_bits, last_tensors, tiny_config, tiny_network
from tvmatch.training import loop
from tvmatch.training.loop import train
from tvmatch.training.trained import load_run

NAME = "time_weight.coefficients"


def test_the_learned_weight_of_consistency_training_is_kept(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", objective="consistency-training", batch_size=8)
    with tiny_network():
        train(config, show=False)
    saved = last_tensors(config.run)
    assert bool(saved[f"objective.{NAME}"].any())
    assert bool(saved[f"optimizer.exp_avg.{NAME}"].any())
    trained = load_run(config.run)
    assert trained.method == "consistency"
    assert not any(name.startswith("objective.") for name in trained.flow.state_dict())


def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = (
        tiny_config(tmp_path / name, objective="consistency-training", batch_size=8) for name in ("whole", "cut")
    )
    step = loop._Run.step

    def failing(self: object, images: Tensor, label: Tensor) -> None:
        if self.state.step == 3 and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise KeyboardInterrupt
        step(self, images, label)

    with tiny_network():
        train(whole, show=False)
        monkeypatch.setattr(loop._Run, "step", failing)
        try:
            train(cut, show=False)
        except KeyboardInterrupt:
            train(cut, show=False)
    assert (tmp_path / "failed").exists()
    assert_same_bits(whole.run, cut.run)
    assert torch.isfinite(last_tensors(cut.run)[f"objective.{NAME}"]).all()
