"""The table of docs/evaluation.md about sampling speed, from what `tvmatch bench sample` wrote.

python benchmarks/sampling_figures.py
"""

import json
from pathlib import Path
from typing import Any

from page_tables import with_tables

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sampling_h200.json"
PAGE = ROOT / "docs" / "evaluation.md"
LATENCY, RATE = 5.0, 1800.0  # milliseconds at batch 1 and images a second: the bars of issue 7


def table(result: dict[str, Any]) -> str:
    """A line a mode: milliseconds of one image, images a second of larger batches; what meets its bar is bold."""
    rows = {(row["mode"], row["batch"]): row for row in result["rows"]}
    modes = list(dict.fromkeys(row["mode"] for row in result["rows"]))
    batches = sorted({row["batch"] for row in result["rows"]} - {1})
    heads = [f"one image (bar {LATENCY:g} ms)", *(f"images/s at {batch}" for batch in batches)]
    lines = [f"| mode | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for mode in modes:
        latency = rows[mode, 1]["milliseconds"]
        cells = [_bold(f"{latency:.2f} ms", latency < LATENCY)]
        for batch in batches:
            rate = rows[mode, batch]["images_per_second"] if (mode, batch) in rows else None
            cells.append("" if rate is None else _bold(f"{rate:,.0f}", rate >= RATE))
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    packages = f"torch {result['torch'].partition('+')[0]}, commit {result['commit']}"
    return "\n".join([*lines, "", f"{result['device']}, {packages}. {result.get('notes', '')}".strip()])


def _bold(text: str, met: bool) -> str:
    return f"**{text}**" if met else text


def filled(text: str, result: dict[str, Any]) -> str:
    """The page with its table as the result has it."""
    return with_tables(PAGE.name, text, {"sampling": table(result)})


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), json.loads(RESULT.read_text())))
