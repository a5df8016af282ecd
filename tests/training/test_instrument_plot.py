import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.support import tiny_config
from tvmatch.cli import main
from tvmatch.training.instrument_plot import draw_instruments, mean_by_time, read_metrics
from tvmatch.training.loop import train


@pytest.mark.parametrize("objective", ["terminal-velocity", "flow-matching"])
def test_the_picture_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture, objective: str) -> None:
    train(tiny_config(tmp_path / "run", objective=objective), show=False)
    assert main(["plot", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'instruments.png'}\n"
    with Image.open(tmp_path / "run" / "instruments.png") as picture:
        assert picture.size == (1440, 675)
        assert len(np.unique(np.asarray(picture).reshape(-1, picture.mode.count("A") + 3), axis=0)) > 50


def test_a_run_that_skips_everything_has_a_picture_too(tmp_path: Path) -> None:
    train(tiny_config(tmp_path / "run", steps=2), show=False)
    lines = [{"step": step, "skipped_share": 1.0, "skipped_total": step} for step in (1, 2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_instruments(tmp_path / "run", tmp_path / "x.png")
    assert (tmp_path / "x.png").is_file()


def test_means_of_bins_are_weighted_by_samples() -> None:
    lines = [
        {
            "step": 1,
            "by_time": {"terminal": [[0.5, 0.25, 2.0, 1], [0.875, 0.0, 7.0, 5]], "boundary": [[0.125, 3.0, 4]]},
        },
        {"step": 2, "by_time": {"terminal": [[0.5, 0.25, 5.0, 3]]}},
        {"step": 3},
    ]
    terminal = mean_by_time(lines, "terminal")
    assert terminal[4, 2] == (2 + 15) / 4
    assert terminal[7, 0] == 7
    assert np.isnan(terminal).sum() == 62
    assert mean_by_time(lines, "boundary")[1] == 3


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert main(["plot", str(tmp_path)]) == 2
    assert "holds no config.yaml" in capsys.readouterr().err
    train(tiny_config(tmp_path / "run", steps=1), show=False)
    assert main(["plot", str(tmp_path / "run"), "--out", str(tmp_path / "x.jpg")]) == 2
    assert "give a name that ends in .png" in capsys.readouterr().err
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 4, "lo')  # as a kill leaves it
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1]
    metrics.write_text("{\n")
    with pytest.raises(ValueError, match="a line that is not JSON"):
        read_metrics(tmp_path / "run")
    for foreign in ("{}", "[]", "5"):
        metrics.write_text(f"{whole}{foreign}\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, has no step"):
            read_metrics(tmp_path / "run")
    metrics.write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
        read_metrics(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no figures yet"):
        draw_instruments(tmp_path / "run", tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'tvmatch\[plot\]'"):
        draw_instruments(tmp_path / "run", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
