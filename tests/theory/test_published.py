"""What the committed results of the bound and of the gradient norms say, held to their bars."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_bound_holds_at_every_evaluated_point() -> None:
    result = json.loads((RESULTS / "methods_bound.json").read_text())
    assert result["evaluated"] == result["hold"] == len(result["rows"]) >= 60
    for row in result["rows"]:
        assert 0 < row["w2_squared"] <= row["coupled"] * (1 + 1e-9)
        assert row["coupled"] <= row["right"]
    assert {row["data"] for row in result["rows"]} == {"gaussian", "two-gaussians", "eight-gaussians"}


def test_the_gradient_of_tvm_stays_even_as_w_grows() -> None:
    result = json.loads((RESULTS / "methods_gradient_norms.json").read_text())
    rows = {row["w"]: row for row in result["summary"] if row["method"] == "TVM"}
    assert rows[1.0]["ratio"]["mean"] == 1
    assert rows[4.0]["ratio"]["mean"] <= result["bar"]
    assert rows[4.0]["seeds"] >= 3
