"""The table of docs/export.md is that of the committed result."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_table_is_that_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import onnx_weights

    result = json.loads((ROOT / "benchmarks" / "results" / "onnx_weights_cpu.json").read_text())
    text = onnx_weights.PAGE.read_text()
    assert onnx_weights.filled(text, result) == text, "run: python benchmarks/onnx_weights.py RUN --json FILE"
    assert f"{result['parameters']:,} parameters" in text
    assert result["step"] == 500
    assert result["rows"][-1]["bytes"] < 2e6  # what the page says of int8
