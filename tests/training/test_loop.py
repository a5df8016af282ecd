"""Whole runs: the same options end with the same bits, every option counts, and it learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.support import last_tensors, metrics, pictures, run, tiny_command, tiny_config, tiny_network
from tvmatch.cli import main
from tvmatch.data.arrays import source_from_arrays
from tvmatch.data.digits import digits_source
from tvmatch.data.source import DataError
from tvmatch.devices import choose_device
from tvmatch.networks.duals import TangentError
from tvmatch.training.checkpoint import list_checkpoints, read_checkpoint
from tvmatch.training.loop import step_seed
from tvmatch.training.preparing import prepare
from tvmatch.training.ranks import Ranks
from tvmatch.training.trained import load_run


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What five steps with the default options end with."""
    folder = tmp_path_factory.mktemp("default") / "run"
    with tiny_network():
        run(tiny_config(folder, steps=5))
    return last_tensors(folder)


def test_the_same_options_end_with_the_same_bits(tmp_path: Path, default: dict[str, torch.Tensor]) -> None:
    run(tiny_config(tmp_path / "again", steps=5))
    again = last_tensors(tmp_path / "again")
    assert again.keys() == default.keys()
    assert all(torch.equal(again[key], value) for key, value in default.items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("guidance", "inverse"),
        ("scaled", False),
        ("weighted", False),
        ("detach_jvp", True),
        ("jumps", "uniform"),
        ("label_dropout", 0.9),
        ("learning_rate", 2e-3),
        ("warmup_steps", 0),
        ("beta1", 0.5),
        ("beta2", 0.5),
        ("weight_decay", 0.5),
        ("clip_gradient", 1e-3),
        ("target_ema", 0.5),
    ],
)
def test_every_option_of_the_method_reaches_the_training(
    tmp_path: Path, default: dict[str, torch.Tensor], name: str, value: object
) -> None:
    """An option that is read and then dropped would be wrong without a word."""
    run(tiny_config(tmp_path / "changed", steps=5, **{name: value}))
    changed = last_tensors(tmp_path / "changed")
    assert any(not torch.equal(changed[key], value) for key, value in default.items() if key.startswith("flow."))


def test_averages_and_target_follow_every_step(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path / "run",
        steps=3,
        checkpoint_every=1,
        keep_checkpoints=3,
        evaluation_ema=(0.0, 0.15, 0.9),
        target_ema=0.75,
        learning_rate=0.1,
    )
    state, _, _ = prepare(config, digits_source(), Ranks(torch.device("cpu")))
    name = "network.patches.weight"
    weight = state.objective.flow.state_dict()[name].clone()
    averages, target = dict.fromkeys(config.evaluation_ema, weight), weight
    run(config)
    for step, path in enumerate(list_checkpoints(config.run)):
        tensors = read_checkpoint(path)
        weight = tensors[f"flow.{name}"]
        target = 0.75 * target + 0.25 * weight
        torch.testing.assert_close(tensors[f"target.{name}"], target)
        for decay in averages:
            used = min(decay, (1 + step) / (10 + step))
            averages[decay] = used * averages[decay] + (1 - used) * weight
            torch.testing.assert_close(tensors[f"ema.{decay}.{name}"], averages[decay])


def test_training_learns(tmp_path: Path) -> None:
    run(tiny_config(tmp_path / "run", steps=60, batch_size=64, learning_rate=1e-2, log_every=10, checkpoint_every=60))
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("objective", ["terminal-velocity", "flow-matching"])
def test_without_classes(tmp_path: Path, objective: str) -> None:
    """Labels are all -1; the network sees w = 1 only, so that is what it is sampled with."""
    config = tiny_config(tmp_path / "run", objective=objective, sample_every=6)
    run(config, source=source_from_arrays(pictures()))
    trained = load_run(config.run)
    assert trained.class_names == ()
    assert trained.w == 1.0
    assert main(["sample", str(config.run), "--count", "3", "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays.files == ["images"]
        assert arrays["images"].shape == (3, 8, 8, 3)
    assert (config.run / "samples" / "step_00000006.png").is_file()


def test_npz_data_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "my data.npz"
    np.savez(data, images=pictures(), labels=np.arange(12) % 2, class_names=np.array(["cat [a]", "猫\n"]))
    command = tiny_command(tmp_path / "run", data=str(data), sample_every=6)
    assert main(command) == 0
    assert main(["sample", str(tmp_path / "run"), "--class", "cat [a]", "--count", "2"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--nfe", "1", "--samples", "8"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"][0].keys() == {"nfe", "w", "frechet"}


def test_a_folder_of_pictures_end_to_end(tmp_path: Path) -> None:
    for index, picture in enumerate(pictures(8, side=12)):
        path = tmp_path / "data" / ("ant", "bee")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    command = tiny_command(tmp_path / "run", data=str(tmp_path / "data"), image_size=8, flip=True)
    assert main(command) == 0
    trained = load_run(tmp_path / "run")
    assert trained.class_names == ("ant", "bee")
    assert trained.flow.network.data_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"network": "DiT-Digitz/4"}, ValueError, "no network is called 'DiT-Digitz/4'; did you mean DiT-Digits/4"),
        ({"network": "DiT-Digits/8", "image_size": 12}, ValueError, "image_size=12 is not a multiple of patch_size=8"),
        ({"data": "digitz"}, DataError, "did you mean `digits`"),
        ({"device": "gpu"}, ValueError, "device must be auto, cpu or cuda, got 'gpu'"),
        ({"device": "meta"}, ValueError, "device must be auto, cpu or cuda, got 'meta'"),
        ({"objective": "flow-matching", "detach_jvp": True}, ValueError, "flow-matching has no option detach_jvp"),
        ({"objective": "flow-matching", "jumps": "uniform"}, ValueError, "flow-matching has no option jumps"),
    ],
)
def test_what_cannot_work_leaves_no_folder_that_refuses_the_right_command(
    tmp_path: Path, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tiny_config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_lost_tangent_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmatch.networks.dit import Block

    body = Block.body
    monkeypatch.setattr(Block, "body", lambda self, *inputs: body(self, *inputs[:-1], inputs[-1] * 1.0))
    run(tiny_config(tmp_path / "harmless"))
    monkeypatch.setattr("tvmatch.networks.probe.STEP", 50.0)  # differences that no longer approximate the derivative
    with pytest.raises(TangentError, match="differs from finite differences"):
        run(tiny_config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="device cuda was asked for, but PyTorch sees no GPU; use --device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_step_seeds_differ() -> None:
    assert len({step_seed(seed, step) for seed in (0, 1, 2) for step in range(50)}) == 150
    assert step_seed(0, 0) == 7896617691693857887  # a run resumed with a newer version must go on with the same draws
