"""What docs/evaluation.md says of evaluations without a feature network is what was measured."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_seconds_are_those_of_the_result() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "own_values_cpu.json").read_text())["rows"]
    small, covariances, large = rows
    assert [(row["size"], row["way"], row["taken"]) for row in rows] == [
        (32, "products", True),
        (32, "covariances", False),
        (64, "products", True),
    ]
    assert abs(small["distance"] - covariances["distance"]) < 1e-9 * small["distance"]
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text().split())
    told = f"{small['seconds_first']:.0f} s a row at 32 pixels ({covariances['seconds_first']:.0f} by covariances, and "
    told += f"{covariances['seconds_next']:.0f} for each further row) and {large['seconds_first']:.0f} s at 64"
    assert told in page
