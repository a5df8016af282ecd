"""What the committed results of the bound and of the gradient norms say, held to their bars."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_bound_holds_at_every_evaluated_point() -> None:
    result = json.loads((RESULTS / "methods_bound.json").read_text())
    rows = result["rows"]
    assert result["evaluated"] == result["hold"] == len(rows) >= 120
    for row in rows:
        assert 0 < row["w2_squared"] <= row["coupled"] * (1 + 1e-9)
        assert row["coupled"] <= row["right"]
    assert {row["data"] for row in rows} == {"gaussian", "two-gaussians", "eight-gaussians"}
    # with few points each is paired best with its own image, and the left side is only the coupled distance
    apart = [row for row in rows if row["w2_squared"] < row["coupled"] * (1 - 1e-6)]
    assert {row["data"] for row in apart} >= {"gaussian", "two-gaussians"}
    assert len(result["moments"]) >= 4
    assert result["points"] >= 64


def test_the_gradient_of_tvm_stays_even_as_w_grows() -> None:
    result = json.loads((RESULTS / "methods_gradient_norms.json").read_text())
    rows = {row["w"]: row for row in result["summary"] if row["method"] == "TVM"}
    assert rows[1.0]["ratio"]["mean"] == 1
    assert rows[4.0]["ratio"]["mean"] <= result["bar"]
    methods = {row["method"] for row in result["rows"]}
    assert {(row["method"], row["w"], row["seeds"]) for row in result["summary"]} == {
        (method, w, 3) for method in methods for w in (1.0, 2.0, 4.0, 8.0)
    }
    assert len(methods) == 5
