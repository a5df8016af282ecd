"""What docs/evaluation.md says of an evaluation on two GPUs is what the committed results of one and of two say."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_two_gpus_measured_what_one_did() -> None:
    one, two = (json.loads((RESULTS / f"evaluation_{n}_h200.json").read_text()) for n in ("one_gpu", "two_gpus"))
    assert (one["processes"], two["processes"]) == (1, 2)
    told = ("rows", "by_seed", "processes")
    assert {name: one[name] for name in one if name not in told} == {
        name: two[name] for name in two if name not in told
    }
    (mine,), (other,) = one["rows"], two["rows"]
    assert mine["frechet"] == pytest.approx(other["frechet"], rel=6e-16)
    measured = [name for name in mine if name not in ("frechet", "seconds", "seconds_drawing")]
    assert "kernel" in measured
    assert {name: mine[name] for name in measured} == {name: other[name] for name in measured}
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text().split())
    assert f"On two H200s {one['samples']:,} samples" in page
    assert f"in {other['seconds']:.1f} instead of {mine['seconds']:.1f} s" in page
