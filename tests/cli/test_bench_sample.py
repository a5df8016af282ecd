import json
import time
from pathlib import Path

import pytest
import torch

from tests.cli.support import assert_one_line, tvmatch
from tvmatch import sampling_speed

SMALL = ("--network", "DiT-Digits/8", "--image-size", "8", "--channels", "1", "--classes", "3", "--device", "cpu")


def test_it_prints_and_writes_a_row_for_each_batch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "rows.json"
    answer = tvmatch(capsys, "bench", "sample", *SMALL, "--batch-size", "1", "3", "--commit", "abc", "--out", out)
    assert answer.code == 0
    assert answer.out.count("images/s") == 2
    told = json.loads(out.read_text())
    assert (told["device"], told["commit"]) == ("cpu", "abc")
    assert [(row["mode"], row["batch"]) for row in told["rows"]] == [("eager", 1), ("eager", 3)]
    for row in told["rows"]:
        assert row["images_per_second"] > 0
        assert row["milliseconds_90"] >= row["milliseconds"] > 0


def test_latency_is_in_milliseconds_and_throughput_in_images_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_speed, "SECONDS", 0.1)
    inputs = torch.zeros(4, 1), torch.zeros(4)
    row = sampling_speed._measured(lambda *_: time.sleep(0.02), inputs, torch.device("cpu"))
    assert 20 <= row["milliseconds"] <= row["milliseconds_90"] < 60
    assert 60 < row["images_per_second"] <= 4 / 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "batch-size and nfe must be at least 1, got [0] and 1"),
        (["--nfe", "0"], "got [1, 64, 256] and 0"),
        (["--network", "DiT-S/3"], "no network is called 'DiT-S/3'"),
        (["--w", "0"], "w must be positive and finite"),
        (["--classes", "0", "--w", "2"], "without classes, so w must be 1, got 2"),
        (["--batch-size", "4", "4"], "batch-size must be given without repetition, got [4, 4]"),
        (["--out", str(Path(__file__) / "x.json")], "test_bench_sample.py is a file, not a folder"),
        (["--modes", "graph"], "--modes graph: a recorded sampler needs a GPU"),
        (["--out", "rows.txt"], "give a name that ends in .json"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert_one_line(tvmatch(capsys, "bench", "sample", *SMALL, *options), message)
