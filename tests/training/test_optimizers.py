"""Which optimiser has which parameters, and that a run with Muon goes on to the same bits."""

from pathlib import Path

import pytest
import torch

from tests.training.support import assert_same_bits, last_tensors, tiny_config
from tvmatch.data.digits import digits_source
from tvmatch.training.loop import train
from tvmatch.training.muon import Muon
from tvmatch.training.optimizers import Together, is_block_matrix
from tvmatch.training.preparing import prepare
from tvmatch.training.ranks import Ranks
from tvmatch.training.state import TrainingState


def state(**changes: object) -> TrainingState:
    return prepare(tiny_config(Path("unused"), **changes), digits_source(), Ranks(torch.device("cpu")))[0]


def test_matrices_of_the_blocks_go_to_muon_and_all_others_to_adamw() -> None:
    made = state(optimizer="muon", learning_rate=0.02, weight_decay=0.3)
    assert isinstance(made.optimizer, Together)
    adamw, muon = made.optimizer.members
    assert isinstance(muon, Muon)
    names = {parameter: name for name, parameter in made.objective.trained().items()}
    theirs = [{names[p] for group in member.param_groups for p in group["params"]} for member in (adamw, muon)]
    assert theirs[1] == {
        f"network.blocks.0.{name}.weight"
        for name in ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2", "modulation.linear")
    }
    assert theirs[0] == set(names.values()) - theirs[1]
    assert all((group["lr"], group["weight_decay"]) == (0.02, 0.3) for group in made.optimizer.param_groups)
    assert isinstance(state().optimizer, torch.optim.AdamW)
    assert not is_block_matrix("network.blocks.0.mlp.fc1.bias", torch.zeros(3))
    assert not is_block_matrix("network.patches.weight", torch.zeros(3, 3))


def test_a_learned_weight_of_the_objective_is_adamws() -> None:
    made = state(optimizer="muon", objective="consistency-training")
    (own,) = (value for name, value in made.objective.trained().items() if "coefficients" in name)
    assert any(own is p for group in made.optimizer.members[0].param_groups for p in group["params"])


def test_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    changes = {"optimizer": "muon", "decay_share": 0.5, "checkpoint_every": 3, "weight_decay": 0.1}
    train(tiny_config(tmp_path / "whole", **changes), show=False)
    assert any(name.startswith("optimizer.momentum.") for name in last_tensors(tmp_path / "whole"))
    train(tiny_config(tmp_path / "parts", **changes), show=False)
    last = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink()
    last.rmdir()
    train(tiny_config(tmp_path / "parts", **changes), show=False)
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_it_learns(tmp_path: Path) -> None:
    """The steps go downhill: on the same draws the loss of a trained network is below a fresh one's."""
    losses = []
    for steps in (1, 40):
        config = tiny_config(tmp_path / f"{steps}", optimizer="muon", steps=steps, learning_rate=3e-3, batch_size=32)
        train(config, show=False)
        made = prepare(config, digits_source(), Ranks(torch.device("cpu")))[0]
        made.load(sorted((config.run / "checkpoints").iterdir())[-1], steps)
        made.objective.seed(0)
        images = torch.from_numpy(digits_source().images[:64]).float() / 127.5 - 1
        losses.append(float(made.objective(images.permute(0, 3, 1, 2), torch.arange(64) % 10).loss.detach()))
    assert losses[1] < 0.8 * losses[0]


def test_what_it_cannot_train_is_refused_before_a_folder_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer muon is for the matrices of equal blocks, and UNet-Tiny has none"):
        train(tiny_config(tmp_path / "run", optimizer="muon", network="UNet-Tiny"), show=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="needs whole matrices, and --strategy fsdp spreads them"):
        tiny_config(tmp_path / "run", optimizer="muon", strategy="fsdp")
    train(tiny_config(tmp_path / "run", optimizer="muon", steps=1), show=False)
    with pytest.raises(ValueError, match="already holds a run with optimizer=muon"):
        train(tiny_config(tmp_path / "run", steps=2), show=False)
