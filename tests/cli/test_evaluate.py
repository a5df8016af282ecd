import json
from pathlib import Path

import pytest

from tests.cli.support import assert_one_line, tvmatch
from tests.metrics.networks import save_small


def test_prints_a_table_and_writes_json(run: Path, capsys: pytest.CaptureFixture) -> None:
    answer = tvmatch(capsys, "evaluate", run, "--nfe", "1", "2", "--w", "1.5", "2", "--samples", "6")
    assert answer.code == 0
    values = json.loads((run / "evaluation.json").read_text())
    assert values["ema"] == 0.9
    pins = {"step": 16, "samples": 6, "seed": 0, "method": "jump", "features": "pixels"}
    assert {name: values[name] for name in pins} == pins
    assert len(values["sha256"]) == 64
    assert "6 samples give a covariance of rank 5 at most, in 192 dimensions" in answer.err
    assert values["checkpoint"].endswith("step_00000016")
    assert [(row["nfe"], row["w"]) for row in values["rows"]] == [(1, 1.5), (2, 1.5), (1, 2.0), (2, 2.0)]
    for row in values["rows"]:
        assert row["frechet"] > 0
        assert f"{row['frechet']:.4g}" in answer.out
    assert answer.out.startswith(f"{run}, step 16, 6 samples\n")
    assert "warning: w=2 was not seen in training" in answer.err
    assert [remark[:9] for remark in values["remarks"]] == ["6 samples", "12 pictur", "w=2 was n"]


def test_out_in_a_new_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new folder" / "figures.v2.json"
    assert tvmatch(capsys, "evaluate", run, "--nfe", "1", "--samples", "2", "--out", out).code == 0
    row = json.loads(out.read_text())["rows"][0]
    assert (row["nfe"], row["w"]) == (1, 1.5)  # the scale that was trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nfe", "1", "0"], "nfe must be one number of network calls or more, each at least 1; got [1, 0]"),
        (["--nfe"], "got []"),
        (["--nfe", "1", "2", "1"], "nfe must be given without repetition; got [1, 2, 1]"),
        (["--w", "1.5", "1.5"], "w must be given without repetition; got [1.5, 1.5]"),
        (["--out", "file/new/x.json"], "file is a file, not a folder"),
        (["--w", "1.5", "0"], "w must be positive and finite"),
        (["--samples", "1"], "at least 2 samples, got 1"),
        (["--seeds", "-1"], "seed must be 0 to 2^63 - 1, got -1"),
        (["--ema", "0.7"], "keeps averages of decay 0.5, 0.9, not 0.7"),
        (["--out", "figures.txt"], "--out figures.txt: give a name that ends in .json"),
        (["--out", "folder.json"], "--out folder.json is a folder that exists"),
    ],
)
def test_bad_input_in_one_line_before_any_work(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    message: str,
) -> None:
    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("it drew before it looked at the options")

    monkeypatch.chdir(tmp_path)
    Path("folder.json").mkdir()
    Path("file").touch()
    monkeypatch.setattr("tvmatch.metrics.report.draw", drawn)
    assert_one_line(tvmatch(capsys, "evaluate", run, *options), message)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert_one_line(tvmatch(capsys, "evaluate", tmp_path), "it is not a run of tvmatch")


def test_several_processes_are_refused_where_each_would_do_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for command in (("evaluate", run), ("sample", run), ("bench", "sample")):
        answer = tvmatch(capsys, *command, "--out", tmp_path / "x.json")
        assert_one_line(answer, "2 were started; leave the launcher (torchrun) out")


def test_an_exported_file_is_measured_beside_itself(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network, statistics, file = (
        save_small(tmp_path / "small.pt"),
        tmp_path / "s.safetensors",
        tmp_path / "a.safetensors",
    )
    data = run.parent / "data.npz"
    assert tvmatch(capsys, "statistics", data, statistics, "--features", network, "--size", "12").code == 0
    assert tvmatch(capsys, "export", run, "--out", file).code == 0
    options = ("--features", network, "--statistics", statistics, "--nfe", "1", "--samples", "20")
    answer = tvmatch(capsys, "evaluate", file, *options)
    assert answer.code == 0, answer.err
    assert (tmp_path / "evaluation.json").is_file()
    assert "no nearest training pictures are shown" in answer.err
