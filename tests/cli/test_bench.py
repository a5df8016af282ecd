import json
import re
from pathlib import Path

import pytest

from tvmatch.cli import main
from tvmatch.training.bench import forward_passes

SMALL = ["bench", "step", "--network", "DiT-Digits/8", "--image-size", "8", "--channels", "1", "--classes", "3"]


def test_it_prints_figures_and_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "rows.json"
    options = ["--batch-size", "2", "--steps", "1", "--device", "cpu", "--optimizer", "muon", "--out", str(out)]
    assert main([*SMALL, *options]) == 0
    text = capsys.readouterr().out
    assert "images/s" in text
    assert "times one of flow matching with w 2\n" in text
    assert "times one of flow matching without guidance\n" in text
    result = json.loads(out.read_text())
    assert result["device"] == "cpu"
    assert [(row["objective"], row["guidance"]) for row in result["rows"]] == [
        *(("terminal-velocity", "2"), ("flow-matching", "2"), ("flow-matching", "1"))
    ]
    for row in result["rows"]:
        assert row["images_per_second"] > 0
        assert 0 < row["mfu"] < 1
        assert (row["policy"], row["optimizer"]) == ("none", "muon")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "batch-size and steps must be at least 1"),
        (["--network", "DiT-S/3"], "no network is called 'DiT-S/3'"),
        (["--guidance", "0"], "guidance '0'"),
        (["--guidance", ""], "guidance ''"),
        (["--classes", "0", "--guidance", "2"], "--guidance 2: without classes w must be 1"),
        (["--graphs", "on"], "--graphs on needs a GPU for each process"),
        (["--out", "rows.txt"], "give a name that ends in .json"),
        (["--out", f"{__file__}/rows.json"], "test_bench.py is a file, not a folder"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*SMALL, "--device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err


def test_without_classes(capsys: pytest.CaptureFixture) -> None:
    options = ["--classes", "0", "--batch-size", "2", "--steps", "1", "--device", "cpu"]
    assert main([*SMALL, *options]) == 0
    text = capsys.readouterr().out
    assert text.count("times one of flow matching") == 1
    assert "without guidance" in text


@pytest.mark.parametrize("classes", ["0", "3"])
def test_guidance_is_compared_as_a_number(classes: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "rows.json"
    options = ["--classes", classes, "--guidance", "1.0", "--batch-size", "2", "--steps", "1", "--device", "cpu"]
    assert main([*SMALL, *options, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert re.findall("times one of flow matching (.*)", text) == ["without guidance"]
    assert "steps skipped" not in text
    assert [(row["objective"], row["guidance"]) for row in json.loads(out.read_text())["rows"]] == [
        *(("terminal-velocity", "1"), ("flow-matching", "1"))
    ]


def test_passes_are_counted_as_the_step_makes_them() -> None:
    assert forward_passes("terminal-velocity", guided=True) == 11
    assert forward_passes("terminal-velocity", guided=False) == 10
    assert forward_passes("terminal-velocity", guided=True, terminal_every=2) == 7.5
    assert forward_passes("terminal-velocity", guided=False, terminal_every=4) == 4.75
    assert forward_passes("flow-matching", guided=True) == 4
    assert forward_passes("flow-matching", guided=False) == 3


def test_rows_of_steps_and_of_samples_do_not_replace_one_another(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    told = {"device": "cpu", "rows": []}
    (tmp_path / "samples.json").write_text(json.dumps(told))
    (tmp_path / "steps.json").write_text(json.dumps(told | {"matmul_tflops": 1.0}))
    for what, other in (("step", "samples"), ("sample", "steps")):
        assert main(["bench", what, "--out", str(tmp_path / f"{other}.json")]) == 2
        assert "holds something else, and is not overwritten" in capsys.readouterr().err
