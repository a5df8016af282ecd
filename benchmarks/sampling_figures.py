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
    """A line a mode and commit: milliseconds of one image, images a second of larger batches; what meets its bar is
    bold."""
    rows = {(row["mode"], row["commit"], row["batch"]): row for row in result["rows"]}
    kinds = list(dict.fromkeys((row["mode"], row["commit"]) for row in result["rows"]))
    batches = sorted({row["batch"] for row in result["rows"]} - {1})
    heads = [f"one image (bar {LATENCY:g} ms)", *(f"images/s at {batch}" for batch in batches)]
    lines = [f"| mode | commit | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 2)]
    for kind in kinds:
        latency = rows[*kind, 1]["milliseconds"]
        cells = [_bold(f"{latency:.2f} ms", latency < LATENCY)]
        for batch in batches:
            rate = rows[*kind, batch]["images_per_second"] if (*kind, batch) in rows else None
            cells.append("" if rate is None else _bold(f"{rate:,.0f}", rate >= RATE))
        lines.append(f"| {' | '.join([*kind, *cells])} |")
    where = f"{result['device']}, torch {result['torch'].partition('+')[0]}."
    return "\n".join([*lines, "", f"{where} {result.get('notes', '')}".strip()])


def _bold(text: str, met: bool) -> str:
    return f"**{text}**" if met else text


def filled(text: str, result: dict[str, Any]) -> str:
    """The page with its table as the result has it."""
    return with_tables(PAGE.name, text, {"sampling": table(result)})


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), json.loads(RESULT.read_text())))
