import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.support import assert_one_line, tvmatch
from tests.metrics.networks import save_small


def test_statistics_and_then_evaluate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The two commands of docs/evaluation.md: the statistics say how the network is used."""
    network, out = save_small(tmp_path / "small.pt"), tmp_path / "new" / "data.safetensors"
    preprocessing = ("--size", "12", "--resize", "bicubic", "--mean", "120", "118", "116", "--deviation", "60")
    answer = tvmatch(capsys, "statistics", run.parent / "data.npz", out, "--features", network, *preprocessing)
    assert (answer.code, answer.out) == (0, f"{out}\n")
    figures = tmp_path / "figures.json"
    options = ("--nfe", "1", "2", "--w", "1", "1.5", "--samples", "12", "--seeds", "0", "1", "--out", figures)
    answer = tvmatch(capsys, "evaluate", run, "--features", network, "--statistics", out, *options)
    assert answer.code == 0
    told = json.loads(figures.read_text())
    assert told["features"]["mean"] == [120, 118, 116]
    assert told["features"]["resize"] == "bicubic"
    assert [(row["nfe"], row["w"]) for row in told["rows"]] == [(1, 1.0), (2, 1.0), (1, 1.5), (2, 1.5)]
    assert answer.out.startswith(f"{run}, step 16, 12 samples\n\n| calls | w | Frechet |")
    assert "warning: w=1 was not seen in training" in answer.err
    assert (tmp_path / "figures" / "tradeoff.png").is_file()
    assert any(remark.startswith("w=1 was not seen in training") for remark in told["remarks"])
    answer = tvmatch(capsys, "evaluate", run, "--out", figures)  # of pixel values: quick, in the place of what was long
    assert_one_line(answer, "is of an evaluation with --features; it is not overwritten. Choose another --out")
    assert json.loads(figures.read_text()) == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features", "none.pt"], "--features none.pt: there is no such file"),
        (["--features", "data.npz"], "--features data.npz is not TorchScript"),
        (["--features", "small.pt", "--size", "0"], "size of the pictures must be at least 1, got 0"),
        (["--features", "small.pt", "--resize", "cubic"], "resize must be legacy, bilinear or bicubic, got 'cubic'"),
        (["--features", "small.pt", "--keep", "0"], "keep must be at least 2, got 0"),
        (["--features", "small.pt", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_statistics_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_small(tmp_path / "small.pt")
    np.savez("data.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    assert_one_line(tvmatch(capsys, "statistics", "data.npz", "out.safetensors", *options), message)
    assert not Path("out.safetensors").exists()


def test_a_wrong_name_is_told_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    answer = tvmatch(capsys, "statistics", "digits", tmp_path / "out.npz", "--features", tmp_path / "none.pt")
    assert_one_line(answer, "give a name that ends in .safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--statistics", "x.safetensors"], "--statistics belongs to --features NETWORK"),
        (["--batch-size", "7"], "--batch-size belongs to --features NETWORK"),
        (["--precision", "bfloat16"], "--precision belongs to --features NETWORK"),
        (["--codec", "x"], "--codec belongs to --features NETWORK"),
        (["--seeds", "0", "1"], "without --features there is one seed, got [0, 1]"),
        (["--features", "small.pt", "--statistics", "small.pt"], "holds no statistics of `tvmatch statistics`"),
        (["--features", "small.pt", "--samples", "5"], "at least 6 samples, got 5"),
        (["--features", "small.pt", "--nfe", "1", "1"], "calls must be given, without repetition; got [1, 1]"),
        (["--features", "small.pt", "--w", "nan"], "w must be positive and finite"),
        (["--features", "small.pt", "--codec", "x"], "this run draws pictures, not latents"),
    ],
)
def test_options_of_evaluate_that_do_not_fit(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_small(tmp_path / "small.pt")
    assert_one_line(tvmatch(capsys, "evaluate", run, "--out", tmp_path / "x.json", *options), message)
    assert not (tmp_path / "x.json").exists()
