"""What docs/evaluation.md says of authenticity and of the agreement with torchmetrics is what was measured."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "evaluation.md").read_text().split())


def load(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def test_authenticity_of_digits_is_that_of_the_result() -> None:
    result = load("authenticity_cpu.json")
    everything, fifth = result["among_all"], result["among_a_fifth"]
    assert everything["copies_of_all"] == 0
    assert f"held-out digits {everything['held_out']:.2f} among all {result['known']:,} others" in PAGE
    copies, held_out = fifth["copies_of_all"], fifth["held_out"]
    told = f"had {copies['mean']:.2f} and held-out ones {held_out['mean']:.2f} (means of {result['seeds']} draws; "
    told += (
        f"{copies['least']:.2f} to {copies['largest']:.2f} and {held_out['least']:.2f} to {held_out['largest']:.2f})"
    )
    assert told in PAGE


def test_inception_features_on_a_cpu_are_those_of_the_result() -> None:
    result = load("quality_cpu.json")
    others, held_out = result["count"] - result["first"], result["authenticity_of_the_first_among_the_others"]
    assert f"first {result['first']:,} images have {held_out:.2f} among {others:,} others" in PAGE
    told = f"first {result['first']:,} against {result['count']:,} to {result['relative_difference']:.0e} "
    assert told + f"({result['frechet']:.5f} and {result['torchmetrics']:.5f}, on a CPU)" in PAGE
