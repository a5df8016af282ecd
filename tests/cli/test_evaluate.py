import json
from pathlib import Path

import pytest

from tests.cli.support import assert_one_line, tvmatch


def test_prints_a_table_and_writes_json(run: Path, capsys: pytest.CaptureFixture) -> None:
    answer = tvmatch(capsys, "evaluate", run, "--nfe", "1", "2", "--w", "1.5", "2", "--samples", "6")
    assert answer.code == 0
    values = json.loads((run / "evaluation.json").read_text())
    assert values["ema"] == 0.9
    assert values["checkpoint"].endswith("step_00000016")
    assert [(row["nfe"], row["w"]) for row in values["rows"]] == [(1, 1.5), (2, 1.5), (1, 2.0), (2, 2.0)]
    for row in values["rows"]:
        assert row["frechet"] > 0
        assert f"{row['frechet']:.4g}" in answer.out
    assert answer.out.startswith(f"{run}, step 16, 6 samples\n")
    assert "warning: w=2 was not seen in training" in answer.err


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
    monkeypatch.setattr("tvmatch.metrics.report.draw", drawn)
    assert_one_line(tvmatch(capsys, "evaluate", run, *options), message)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert_one_line(tvmatch(capsys, "evaluate", tmp_path), "it is not a run of tvmatch")
