import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.support import last_tensors, tiny_config, tiny_network
from tvmatch.data.arrays import source_from_arrays
from tvmatch.data.latent_space import picture_maker
from tvmatch.training.checkpoint import CheckpointError, list_checkpoints, read_checkpoint, read_header, remove
from tvmatch.training.config import to_yaml
from tvmatch.training.loop import train
from tvmatch.training.preview import default_w, draw_preview
from tvmatch.training.ranks import Ranks
from tvmatch.training.run_folder import RunFolderError
from tvmatch.training.saving import Saver
from tvmatch.training.trained import TrainedRun, load_run

NAMES = ("bee", "wasp", "ant [x]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures of three named classes, with averages of decay 0, 0.5 and 0.9999999."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    source = source_from_arrays(images, np.arange(12) % 3, NAMES)
    config = tiny_config(tmp_path_factory.mktemp("runs") / "run", evaluation_ema=(0.9999999, 0.0, 0.5), guidance="2:3")
    with tiny_network():
        train(config, source=source, show=False)
    return config.run


def test_the_slowest_average_unless_another_is_named(run: Path) -> None:
    tensors = last_tensors(run)
    for ema, name in ((None, "0.9999999"), (0.5, "0.5"), (0, "0.0"), (0.9999999, "0.9999999")):
        trained = load_run(run, ema)
        assert trained.ema == float(name)
        for key, value in trained.flow.state_dict().items():
            assert torch.equal(value, tensors[f"ema.{name}.{key}"])
    assert all(torch.equal(tensors[f"flow.{key}"], value) for key, value in load_run(run, 0).flow.state_dict().items())
    with pytest.raises(ValueError, match=r"keeps averages of decay 0\.0, 0\.5, 0\.9999999, not 0\.9\."):
        load_run(run, 0.9)


def test_opening_makes_no_initial_weights(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmatch.networks.modulated.init_spectral_", None)  # minutes for the largest networks
    assert load_run(run).step == 6


def test_what_it_knows_of_the_run(run: Path) -> None:
    trained = load_run(run)
    assert (trained.class_names, trained.objective, trained.method, trained.step) == (
        *(NAMES, "terminal-velocity", "jump", 6),
    )
    assert trained.checkpoint == list_checkpoints(run)[-1]
    assert not trained.flow.training
    assert not any(parameter.requires_grad for parameter in trained.flow.parameters())
    assert trained.flow.scaled


def test_classes_by_name_and_number(run: Path) -> None:
    trained = load_run(run)
    assert [trained.class_index(name) for name in ("wasp", "ant [x]", "2", "0")] == [1, 2, 2, 0]
    for name in ("3", "-1", "²", "", "BEE!"):
        with pytest.raises(ValueError, match="no class is called"):
            trained.class_index(name)
    with pytest.raises(ValueError, match="no class is called 'wsp'; did you mean 'wasp'"):
        trained.class_index("wsp")
    with pytest.raises(ValueError, match=r"no class is called 'xyz'; there are bee, wasp, ant \[x\]"):
        trained.class_index("xyz")


def test_a_number_is_a_name_where_names_are_numbers(run: Path) -> None:
    """Folders called 1, 2, 3: class 1 is the folder, never the second one."""
    trained = dataclasses.replace(load_run(run), class_names=("1", "2", "3"))
    assert trained.class_index("1") == 0
    with pytest.raises(ValueError, match="no class is called '0'"):
        trained.class_index("0")


@pytest.mark.parametrize(
    ("guidance", "classes", "w"),
    [("2", 3, 2.0), ("1:3", 3, 1.5), ("2:3", 3, 2.0), ("0.5:1", 3, 1.0), ("inverse", 3, 1.5), ("2", 0, 1.0)],
)
def test_the_scale_to_sample_with_is_one_that_was_trained(guidance: str, classes: int, w: float) -> None:
    assert default_w(guidance, classes) == w


@pytest.mark.parametrize(
    ("guidance", "seen", "unseen"),
    [("1.5", (1.5,), (1.0, 2.0)), ("2:3", (2.0, 2.5, 3.0), (1.5, 3.5)), ("inverse", (1.0, 9.0), (0.5,))],
)
def test_a_scale_that_was_not_trained_is_warned_of(run: Path, guidance: str, seen: tuple, unseen: tuple) -> None:
    trained = dataclasses.replace(load_run(run), guidance=guidance)
    assert [trained.check_w(w) for w in seen] == [None] * len(seen)
    for w in unseen:
        assert f"w={w:g} was not seen in training (--guidance {guidance})" in trained.check_w(w)
    for w in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w must be positive and finite"):
            trained.check_w(w)


def test_without_classes_only_w_1_works(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    train(tiny_config(tmp_path / "run"), source=source_from_arrays(images), show=False)
    trained: TrainedRun = load_run(tmp_path / "run")
    assert (trained.guidance, trained.w) == ("1", 1.0)  # whatever the default is for data with classes
    assert trained.check_w(1.0) is None
    with pytest.raises(ValueError, match=r"trained without classes, so w must be 1, got 1\.5"):
        trained.check_w(1.5)
    with pytest.raises(ValueError, match="no class is called '0': this run was trained without classes"):
        trained.class_index("0")


@pytest.mark.parametrize(
    ("objective", "vain", "message"),
    [
        ("terminal-velocity", {"guidance": "1:3", "label_dropout": 0.5}, "guidance 1:3: without classes w must be 1"),
        ("flow-matching", {"target_ema": 0.5}, "flow-matching has no option target_ema"),
    ],
)
def test_what_does_nothing_without_classes_is_refused_but_an_earlier_run_goes_on(
    tmp_path: Path, objective: str, vain: dict, message: str
) -> None:
    """Earlier versions took such options in silence; what they did then is what they do now: nothing."""
    source = source_from_arrays(np.zeros((4, 8, 8, 1), np.uint8))
    vain = vain | {"objective": objective}
    with pytest.raises(ValueError, match=message):
        train(tiny_config(tmp_path / "run", **vain), source=source, show=False)
    assert not (tmp_path / "run").exists()
    train(tiny_config(tmp_path / "run", objective=objective, steps=2), source=source, show=False)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(tiny_config(tmp_path / "run", **vain)))
    train(tiny_config(tmp_path / "run", **vain, steps=4), source=source, show=False)
    assert (load_run(tmp_path / "run").step, load_run(tmp_path / "run").w) == (4, 1.0)


def test_flow_matching_is_sampled_by_euler_steps(tmp_path: Path) -> None:
    train(tiny_config(tmp_path / "run", objective="flow-matching"), show=False)
    assert load_run(tmp_path / "run").method == "euler"


def test_folders_that_hold_no_run(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunFolderError, match=r"there is no folder .*nowhere; choose another folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"holds no config\.yaml, so it is not a run of tvmatch"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="has no checkpoint yet; train it first: tvmatch train --run"):
        load_run(tmp_path)


def save(tensors: dict[str, torch.Tensor], like: Path, run: Path) -> None:
    """A checkpoint of other tensors with the header of another."""
    header = read_header(like)
    (run / "config.yaml").write_text((like.parent.parent / "config.yaml").read_text())
    for old in list_checkpoints(run):
        remove(old)
    saver = Saver(run, 1, Ranks(torch.device("cpu")))
    saver.start(header["step"], tensors, header)
    saver.wait()
    saver.close()


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, run: Path) -> None:
    path = list_checkpoints(run)[-1]
    tensors = read_checkpoint(path)
    missing = next(name for name in tensors if name.startswith("ema.0.5.network."))
    save({name: value for name, value in tensors.items() if name != missing}, path, tmp_path)
    with pytest.raises(CheckpointError, match=rf"lacks {missing.removeprefix('ema.0.5.')}"):
        load_run(tmp_path, 0.5)
    assert load_run(tmp_path).ema == 0.9999999
    save({name: value for name, value in tensors.items() if not name.startswith("ema.")}, path, tmp_path)
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        load_run(tmp_path)


@pytest.mark.parametrize("objective", ["terminal-velocity", "flow-matching", "consistency-training"])
def test_the_preview_is_the_same_for_the_same_weights(run: Path, tmp_path: Path, objective: str) -> None:
    trained = load_run(run)
    config = tiny_config(tmp_path / "run", objective=objective, guidance="2:3")
    # folders, and so classes, may be called anything
    names = ("two\nlines\t", "\udcff surrogate", "x" * 300)
    to_pictures = picture_maker(None, "cpu")
    first, second = (draw_preview(trained.flow, config, names, to_pictures) for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))
    assert first.width < 1500
