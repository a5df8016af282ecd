"""What somebody who is new here gets wrong, and the one line that is said to it."""

import builtins
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.support import assert_one_line, tvmatch

READERS = {
    "sample": (),
    "evaluate": (),
    "plot": (),
    "export": (),
    "export to onnx": ("--to", "onnx"),
    "export to diffusers": ("--to", "diffusers"),
    "demo": (),
}


@pytest.mark.parametrize("name", READERS)
def test_a_run_that_is_not_there(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Whatever reads a run says which folder was perhaps meant."""
    command, options = name.split()[0], READERS[name]
    (tmp_path / "runs").mkdir()
    mine = Path(shutil.copytree(run, tmp_path / "runs" / "mine"))

    def said(path: Path) -> str:
        answer = tvmatch(capsys, command, path, *options)
        assert_one_line(answer, str(path))
        return answer.err

    assert said(tmp_path / "runs" / "mien").endswith(f"there is no folder {tmp_path}/runs/mien; did you mean {mine}?\n")
    assert said(tmp_path / "runs" / "other").endswith(
        f"there is no folder {tmp_path}/runs/other; choose another folder.\n"
    )
    assert said(tmp_path / "runs").endswith(f"so it is not a run of tvmatch; did you mean {mine}?\n")
    assert said(mine / "checkpoints").endswith(f"did you mean {mine}?\n")
    assert said(mine / "config.yaml").endswith(f"is a file, not a run of tvmatch; did you mean {mine}?\n")
    assert said(mine / "checkpoints" / "step_00000016").endswith(f"did you mean {mine}?\n")


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "demo", "bench", "encode"])
def test_a_gpu_that_is_not_there(command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    arguments: dict[str, tuple[Any, ...]] = {
        "train": ("--run", tmp_path / "new"),
        "bench": ("step",),
        "encode": (run.parent / "data.npz", tmp_path / "latents", "--codec", "pixels"),
    }
    answer = tvmatch(capsys, command, *arguments.get(command, (run,)), "--device", "cuda")
    assert_one_line(answer, "device cuda was asked for, but PyTorch sees no GPU; use --device cpu.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "packages", "arguments"),
    [
        ("export", ("onnx", "onnxruntime", "onnxscript"), ("export", "RUN", "--to", "onnx")),
        ("export", ("diffusers",), ("export", "RUN", "--to", "diffusers")),
        ("plot", ("matplotlib", "matplotlib.pyplot", "matplotlib.figure"), ("plot", "RUN")),
        ("demo", ("gradio",), ("demo", "RUN")),
        ("data", ("diffusers",), ("encode", "DATA", "OUT", "--codec", "stabilityai/sd-vae-ft-mse")),
        ("data", ("datasets",), ("train", "--run", "OUT", "--data", "hf:mnist")),
    ],
)
def test_an_extra_that_is_not_installed(
    extra: str,
    packages: tuple[str, ...],
    arguments: tuple[str, ...],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] in packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return plain(name, *rest, **named)

    for name in list(sys.modules):
        if name in packages or name.startswith("tvmatch.integrations.diffusers"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    named = {"RUN": run, "DATA": run.parent / "data.npz", "OUT": tmp_path / "out"}
    answer = tvmatch(capsys, *(named.get(word, word) for word in arguments))
    assert_one_line(answer, f"pip install 'tvmatch[{extra}]'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--run", "OUT", "--data", "nowhere"), "no such file or folder: "),
        (("train", "--run", "OUT", "--data", "EMPTY"), "no file can be used as a picture"),
        (("train", "--run", "EMPTY"), "holds no config.yaml, so it is not a run of tvmatch; choose another folder"),
        (("train", "--run", "OUT", "--network", "DiT-M/2"), "did you mean DiT-"),
        (("train", "--run", "OUT", "--data", "DATA", "--network", "DiT-S/3"), "no network is called 'DiT-S/3'"),
        (("sample", "RUN", "--class", "be"), "no class is called 'be'; did you mean 'bee'?"),
        (("sample", "RUN", "--class", "7"), "no class is called '7'; there are bee, wasp, ant [x]."),
        (("sample", "RUN", "--out", "OUT.jpg"), "give a name that ends in .png or .npz, or a new folder"),
        (("import-official", "nowhere.pkl", "OUT"), "nowhere.pkl: No such file or directory."),
    ],
)
def test_other_mistakes(
    arguments: tuple[str, ...], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    named = {"RUN": run, "DATA": run.parent / "data.npz", "EMPTY": tmp_path / "empty", "OUT": tmp_path / "out"}
    named["OUT.jpg"] = tmp_path / "out.jpg"
    answer = tvmatch(capsys, *(named.get(word, word) for word in arguments))
    assert_one_line(answer, message)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
