import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.cli.support import assert_one_line, tvmatch
from tests.training.support import tiny_command
from tvmatch.training.checkpoint import checkpoint_path, list_checkpoints, read_checkpoint
from tvmatch.training.trained import load_run


def test_the_file_holds_the_averages_and_is_sampled_like_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "new folder" / "weights.safetensors"
    answer = tvmatch(capsys, "export", run, "--out", file)
    assert (answer.code, answer.out) == (0, f"{file}\n")
    saved = read_checkpoint(list_checkpoints(run)[-1])
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["tvmatch"])["step"] == 16
        names = set(opened.keys())
    assert names == {name for name in saved if name.startswith("ema.")}
    for name, value in load_run(file).flow.state_dict().items():
        assert torch.equal(value, load_run(run).flow.state_dict()[name])
    for source, out in ((run, "a.png"), (file, "b.png")):
        assert tvmatch(capsys, "sample", source, "--count", 3, "--out", tmp_path / out).code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert tvmatch(capsys, "sample", file, "--count", 3).out == f"{file.parent / 'drawn.png'}\n"


def test_one_average(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "weights.safetensors"
    assert tvmatch(capsys, "export", run, "--out", file, "--ema", 0.5).code == 0
    assert load_run(file).ema == 0.5
    assert_one_line(
        tvmatch(capsys, "export", run, "--out", file, "--ema", 0.3), "keeps averages of decay 0.5, 0.9, not"
    )
    assert_one_line(tvmatch(capsys, "sample", file, "--ema", 0.9), "keeps averages of decay 0.5, not 0.9")


def test_a_single_file_of_an_earlier_version_is_sampled(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Such a run has the same header and names in one file a checkpoint."""
    old = tmp_path / "run" / "checkpoints" / "step_00000016.safetensors"
    assert tvmatch(capsys, "export", run, "--out", old).code == 0
    shutil.copy(run / "config.yaml", tmp_path / "run")
    assert load_run(tmp_path / "run").step == 16
    assert tvmatch(capsys, "evaluate", tmp_path / "run", "--nfe", 1, "--samples", 6).code == 0


def test_what_cannot_be_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_line(tvmatch(capsys, "export", tmp_path), "holds no config.yaml, so it is not a run of tvmatch")
    assert_one_line(
        tvmatch(capsys, "export", run, "--out", tmp_path / "x.bin"), "give a name that ends in .safetensors"
    )
    out = tmp_path / "weights.safetensors"
    out.write_text("another's")
    assert_one_line(tvmatch(capsys, "export", run, "--out", out), "holds something else, and is not overwritten")
    assert out.read_text() == "another's"
    among = run / "checkpoints" / "step_00000016" / "weights.safetensors"
    assert_one_line(tvmatch(capsys, "export", run, "--out", among), "is among the checkpoints of a run; choose another")
    out.unlink()
    assert tvmatch(capsys, "export", run, "--out", out).code == 0
    before = out.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tvmatch.training.safetensors_file.save_file", full)
    assert_one_line(tvmatch(capsys, "export", run, "--out", out), "No space left on device")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("weights.safetensors", before)]


def test_a_newest_checkpoint_that_is_not_whole_is_not_passed_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By no command: what it wrote would be of older weights than the user sees in the folder."""
    run = shutil.copytree(run, tmp_path / "run")
    commands = (
        ("export", run, "--out", tmp_path / "weights.safetensors"),
        ("sample", run, "--count", 1, "--out", tmp_path / "a.png"),
        ("evaluate", run, "--nfe", 1, "--samples", 6),
        tiny_command(tmp_path / "new", initial=run),
    )
    # what a run that trains now has in its folder: a save in hand
    (run / "checkpoints" / ".step_00000032.tmp").mkdir()
    # and what somebody left of an older one hinders nobody
    checkpoint_path(run, 1).mkdir()
    for command in commands[:2]:
        assert tvmatch(capsys, *command).code == 0
    checkpoint_path(run, 20).mkdir()
    for command in commands:
        assert_one_line(
            tvmatch(capsys, *command),
            "step_00000020 is not whole: tvmatch.json is missing. Delete it to go back to step_00000016.",
        )
    assert not (tmp_path / "new").exists()
