import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tvmatch as package
from tests.cli.support import tvmatch
from tvmatch.cli.main import COMMANDS

EXPECTED = {
    "train": ("--run", "--data", "--network", "--steps", "--evaluation-ema", "Ctrl-C", "the same command continues"),
    "sample": ("--out", "--nfe", "--w", "--class", "--seed", "--count"),
    "evaluate": ("--nfe", "--w", "--samples", "--out"),
    "plot": ("--out", "attention logits"),
    "bench": ("step", "--network", "--batch-size", "--recompute", "--out", "flow-matching"),
    "statistics": ("--features", "--image-size", "--keep"),
    "encode": ("--codec", "--image-size", "continues an encoding that was stopped"),
    "export": ("--to", "--out", "--ema", "--license"),
    "demo": ("--static", "--host", "--port"),
    "ablate": ("--vary", "--seeds", "--list"),
    "import-official": ("--guidance", "--w", "--nfe", "--data", "--codec"),
    "presets": ("--image-size", "--channels", "--classes"),
}


def test_help_and_version(capsys: pytest.CaptureFixture) -> None:
    for flag in ("--help", "-h"):
        answer = tvmatch(capsys, flag)
        assert answer.code == 0
        assert all(name in answer.out and help_line in answer.out for name, (_, help_line) in COMMANDS.items())
    assert tvmatch(capsys, "--version").out == f"{package.__version__}\n"
    nothing = tvmatch(capsys)
    assert nothing.code == 2
    assert "usage: tvmatch COMMAND" in nothing.out + nothing.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_names_its_options(capsys: pytest.CaptureFixture, command: str) -> None:
    answer = tvmatch(capsys, command, "--help")
    assert answer.code == 0
    assert f"tvmatch {command}" in answer.out
    assert EXPECTED[command]
    for expected in EXPECTED[command]:
        assert expected in " ".join(answer.out.split())
    importlib.import_module(COMMANDS[command][0])


@pytest.mark.parametrize(
    ("typo", "message"),
    [
        ("trian", "no command 'trian'; did you mean `tvmatch train`?"),
        ("evalute", "did you mean `tvmatch evaluate`?"),
        ("xyzzy", f"no command 'xyzzy'; there are {', '.join(COMMANDS)}."),
        ("--run", "no command '--run'"),
    ],
)
def test_a_mistyped_command(capsys: pytest.CaptureFixture, typo: str, message: str) -> None:
    answer = tvmatch(capsys, typo)
    assert answer.code == 2
    assert message in answer.err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("train", "--stepz", "3"), "--steps"),
        (("train", "--batchsize", "3"), "--batch-size"),
        (("sample", "x", "--nfee", "3"), "--nfe"),
        (("sample", "x", "--classes", "3"), "--class"),
        (("evaluate", "x", "--sample", "3"), "--samples"),
        (("presets", "--image-sizes", "3"), "--image-size"),
    ],
)
def test_a_mistyped_option_is_answered_with_what_was_meant(
    capsys: pytest.CaptureFixture, arguments: tuple, meant: str
) -> None:
    answer = tvmatch(capsys, *arguments)
    assert answer.code == 2
    assert "Perhaps you meant" in answer.err
    assert meant in answer.err.split("Perhaps you meant")[1]


def test_an_error_of_many_lines_is_told_in_one(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: list[str]) -> int:
        raise ValueError("first\nsecond")

    monkeypatch.setattr("tvmatch.cli.presets.command", failing)
    assert tvmatch(capsys, "presets").err == "tvmatch presets: first second\n"


def test_a_mistake_has_its_exit_code_where_stderr_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmatch.cli import main

    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        assert main(["train", "--device", "gpu"]) == 2
        assert main(["trian"]) == 2


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"WORLD_SIZE": "2"}, "tvmatch train: device must be auto, cpu or cuda, got 'gpu'"),  # nobody's launcher
        ({"WORLD_SIZE": "2", "RANK": "1"}, "tvmatch train (rank 1): device must be auto, cpu or cuda, got 'gpu'"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "tvmatch train: device must be auto, cpu or cuda, got 'gpu'"),
    ],
)
def test_a_mistake_is_told_whatever_a_launcher_has_said(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, told: dict, message: str
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    answer = tvmatch(capsys, "train", "--device", "gpu", "--run", "nowhere/run")
    assert answer.code == 2
    assert answer.err.startswith(message)
    assert answer.err.count("\n") == 1


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmatch.cli import main

    def failing(_: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr("tvmatch.cli.presets.command", failing)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["presets"])


def test_the_installed_program() -> None:
    program = Path(sys.executable).with_name("tvmatch")
    if not program.exists():
        pytest.skip("tvmatch is not installed beside this Python")
    done = subprocess.run([program, "presetz"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "did you mean `tvmatch presets`?" in done.stderr


def test_memory_that_is_full_is_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(arguments: list[str]) -> int:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."
        )

    monkeypatch.setattr(importlib.import_module(COMMANDS["sample"][0]), "command", full)
    answer = tvmatch(capsys, "sample")
    told = "out of memory (asked for 2.50 GiB more). Give a smaller --batch-size, where the command has one."
    assert (answer.code, answer.err.strip()) == (1, f"tvmatch sample: {told}")


def test_an_interrupt_while_a_command_is_imported_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["tvmatch.cli.main"], "import_module", interrupted)
    answer = tvmatch(capsys, "sample")
    assert (answer.code, answer.err) == (130, "tvmatch sample: interrupted\n")
