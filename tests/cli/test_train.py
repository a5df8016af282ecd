"""What `tvmatch train` prints and refuses; whole runs, signals and disks are in tests/training."""

from pathlib import Path

import numpy as np
import pytest

from tests.cli.support import assert_one_line, tvmatch
from tests.training.support import TINY, tiny_command
from tvmatch.training.run_folder import read_config


def test_a_run_ends_with_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "deep" / "a run [/x]"  # brackets that rich would take for markup
    answer = tvmatch(capsys, *tiny_command(folder, steps=2))
    assert answer.code == 0
    assert answer.out == f"draw with: tvmatch sample {folder}\n"
    assert "2/2" in answer.err
    assert "2 steps" in answer.err
    answer = tvmatch(capsys, *tiny_command(folder, steps=3))
    assert answer.code == 0
    assert f"continuing {folder} after step 2" in answer.err


def test_every_option_reaches_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = {"evaluation_ema": (0.25, 0.99999), "learning_rate": 1e-5, "flip": True, "guidance": "1:2", "steps": 1}
    assert tvmatch(capsys, *tiny_command(tmp_path / "run", **options)).code == 0
    config = read_config(tmp_path / "run")
    assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "digitz"}, "unknown data 'digitz': did you mean `digits`?"),
        ({"data": "nowhere/x.npz"}, "no such data: 'nowhere/x.npz'"),
        ({"network": "DiT-Digitz/4"}, "no network is called 'DiT-Digitz/4'; did you mean DiT-Digits/4"),
        ({"image_size": 10}, "image_size=10 is not a multiple of patch_size=4"),
        ({"device": "gpu"}, "device must be auto, cpu or cuda, got 'gpu'"),
        ({"objective": "flow-matching", "jumps": "uniform"}, "flow-matching has no option jumps"),
    ],
)
def test_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, options: dict, message: str) -> None:
    assert_one_line(tvmatch(capsys, *tiny_command(tmp_path / "run", **options)), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": "ten"}, "'ten'"),
        ({"guidance": "much"}, "guidance 'much'"),
        ({"evaluation_ema": (0.9, 1.5)}, "evaluation_ema must be in [0, 1), got 1.5"),
        ({"objective": "diffusion"}, "diffusion"),
        ({"seed": 2**64}, "seed must be below 2^63"),
    ],
)
def test_values_out_of_range_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, options: dict, message: str
) -> None:
    answer = tvmatch(capsys, *tiny_command(tmp_path / "run", **options))
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    assert tvmatch(capsys, *tiny_command(folder, steps=2)).code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert_one_line(tvmatch(capsys, *tiny_command(folder, steps=2)), "complete with 2 steps")
    assert_one_line(tvmatch(capsys, *tiny_command(folder, seed=5)), "already holds a run with seed=0")
    assert_one_line(tvmatch(capsys, *tiny_command(tmp_path)), f"is not a run of tvmatch; did you mean {folder}?")
    (tmp_path / "file").touch()
    assert_one_line(tvmatch(capsys, *tiny_command(tmp_path / "file")), "is a file; choose another --run")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_recipe_sets_the_options_and_others_go_before_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = ["--network", TINY, "--batch-size", "4", "--steps", "1", "--device", "cpu", "--sample-every", "0"]
    images, data = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8), tmp_path / "data.npz"
    np.savez(data, images=images, labels=np.arange(8))
    answer = tvmatch(capsys, "train", "--recipe=cifar10", "--run", tmp_path / "run", "--data", data, *small)
    assert answer.code == 0, answer.err
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "optimizer: muon" in config
    assert "flip: true" in config
    assert "batch_size: 4" in config


def test_a_recipe_takes_a_folder_and_data_that_are_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--network", TINY, "--batch-size", "4", "--steps", "1", "--device", "cpu", "--sample-every", "0"]
    answer = tvmatch(capsys, "train", "--recipe", "cifar10", "--run", "runs/digits", "--data=digits", *small)
    assert answer.code == 0, answer.err
    assert read_config(Path("runs/digits")).optimizer == "muon"


def test_a_recipe_needs_data_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["--recipe", "cifar"], "no recipe is called 'cifar'; did you mean 'cifar10'?"),
        (["--recipe"], "--recipe needs a value"),
        (["--recipe", "cifar10", "--recipe", "pictures"], "--recipe is given twice"),
        (["--recipe", "cifar10", "--data", "x"], "needs a folder for the run: --run FOLDER"),
        (["--recipe", "cifar10", "--run", tmp_path], "needs data: --data FOLDER_OR_FILE"),
    ):
        assert_one_line(tvmatch(capsys, "train", *arguments), message)
