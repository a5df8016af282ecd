#!/usr/bin/env python3
"""Write the figures of training steps into docs/engine.md and docs/distributed.md, as the result files have them.

python benchmarks/train_step_tables.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page_tables import with_tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LATEST, EARLIER = RESULTS / "train_step_h200.json", RESULTS / "train_step_h200_earlier.json"
TVM, FLOW_MATCHING = "terminal-velocity", "flow-matching"
RATIO, TWO_GPUS = 2.6, 1.9  # bars

Row = dict[str, Any]
# (network, data, batch, policy) of guided TVM on one GPU -> bars: images a second, GiB, seconds of the first step
BARS: dict[tuple[str, str, int, str], tuple[float, float, float | None]] = {
    ("DiT-XL/2", "4x32x32", 64, "none"): (165, 80, 60),
    ("DiT-XL/2", "4x32x32", 64, "full"): (115, 40, None),
    ("DiT-XL/2", "4x64x64", 16, "selective"): (30, 80, None),
    ("DiT-S/4", "3x32x32", 1024, "none"): (10_000, 40, None),
}


def rows_of(path: Path) -> list[Row]:
    """The rows of a result file that have figures. `cold`: whether all of a row was compiled in its first step, since
    no cache held code; false where some was found; absent where nobody wrote it down."""
    return [row for row in json.loads(path.read_text())["rows"] if "error" not in row]


def bars_of(row: Row) -> tuple[float | None, float | None, float | None]:
    """The bars that a row is held against: images a second, GiB, seconds of the first step."""
    jumps = row["objective"] == TVM and row["guidance"] != "1" and row["terminal_every"] == 1 and not muon(row)
    key = (row["network"], row["data"], row["batch"], row["policy"])
    return BARS.get(key, (None,) * 3) if jumps and row["gpus"] == 1 else (None,) * 3


def muon(row: Row) -> bool:
    return row.get("optimizer", "adamw") == "muon"


def beside(value: float, text: str, bar: float | None, met: Callable[[float, float], bool]) -> str:
    """A figure beside its bar, bold where it is met."""
    if bar is None:
        return text
    return f"{f'**{text}**' if met(value, bar) else text} ({bar:,g})"


def rate(row: Row) -> str:
    speed, bar = row["images_per_second"], bars_of(row)[0]
    return beside(speed, f"{speed:,.1f}", bar, lambda value, least: value >= least)


def memory(row: Row) -> str:
    peak, bar = row["peak_gib"], bars_of(row)[1]
    return beside(peak, f"{peak:.1f}", bar, lambda value, most: value <= most)


def first_seconds(row: Row) -> str:
    """Seconds of the first step, and that it is warm where some of its code is known to have been compiled before."""
    return f"{row['compile_seconds']:.0f} s" + (", warm" if row.get("cold") is False else "")


def first(row: Row) -> str:
    """The same beside its bar, which is of compiling everything: a warm row is not held against it, and only one that
    is known to be cold is said to meet it."""
    bar, cold = bars_of(row)[2], row.get("cold")
    if cold is False:
        return first_seconds(row)
    return beside(row["compile_seconds"], first_seconds(row), bar, lambda value, most: cold is True and value <= most)


def step_of(row: Row) -> str:
    """The step of a row in words."""
    name = {TVM: "TVM", FLOW_MATCHING: "flow matching"}[row["objective"]]
    jumps = f", 1 of {row['terminal_every']} samples jumps" if row["terminal_every"] > 1 else ""
    return f"{name}, {'unguided' if row['guidance'] == '1' else 'guided'}{jumps}{', Muon' if muon(row) else ''}"


def what(row: Row) -> list[str]:
    return [f"{row['network']}, {row['data']}, {row['batch']}", step_of(row), row["policy"]]


LAST = ["utilisation", "first step (bar)"]


def last(row: Row) -> list[str]:
    return [f"{row['mfu']:.2f}", first(row)]


def table(*lines: list[str]) -> str:
    head, *rows = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def latest_table(rows: list[Row]) -> str:
    head = ["network, data, batch", "step", "recompute", "images/s (bar)", "ms", "peak GiB (bar)", *LAST]
    lines = ([*what(row), rate(row), f"{row['milliseconds']:.1f}", memory(row), *last(row)] for row in rows)
    return table(head, *lines)


def earlier_table(rows: list[Row]) -> str:
    head = ["network, data, batch", "step", "recompute", "visit", "images/s (bar)", "peak GiB (bar)", *LAST]
    alone = (row for row in rows if row["gpus"] == 1)
    return table(head, *([*what(row), row["visit"], rate(row), memory(row), *last(row)] for row in alone))


def find(rows: list[Row], objective: str, guidance: str) -> Row:
    """XL/2's step at N = 256 without recomputation."""
    wanted = {"network": "DiT-XL/2", "data": "4x32x32", "policy": "none", "terminal_every": 1, "gpus": 1}
    wanted |= {"objective": objective, "guidance": guidance}
    (row,) = (row for row in rows if not muon(row) and all(row[name] == value for name, value in wanted.items()))
    return row


def ratios(rows: list[Row]) -> tuple[float, float]:
    """What a guided TVM step costs beside a flow-matching step: a guided one, and an unguided one."""
    mine = find(rows, TVM, "2")["milliseconds"]
    return mine / find(rows, FLOW_MATCHING, "2")["milliseconds"], mine / find(rows, FLOW_MATCHING, "1")["milliseconds"]


def ratio_table(rows: list[Row]) -> str:
    mine = find(rows, TVM, "2")["milliseconds"]
    lines = []
    for name, guidance, passes, ratio in zip(("guided", "unguided"), ("2", "1"), (4, 3), ratios(rows), strict=True):
        other = find(rows, FLOW_MATCHING, guidance)["milliseconds"]
        shown = beside(ratio, f"{ratio:.3f}", RATIO, lambda value, most: value <= most)
        lines.append(
            [f"{name} flow matching", f"{mine:.1f}", f"{other:.1f}", shown, f"11/{passes} = {11 / passes:.2f}"]
        )
    return table(["guided TVM beside", "ms of TVM", "ms of the other", "times (bar)", "in arithmetic"], *lines)


def two_gpus_table(rows: list[Row]) -> str:
    """Rows of two GPUs beside the row of one GPU of their visit."""
    lines = []
    for visit in dict.fromkeys(row["visit"] for row in rows if row["gpus"] == 2):
        here = [row for row in rows if row["visit"] == visit]
        (alone,) = (row for row in here if row["gpus"] == 1)
        for row in sorted(here, key=lambda row: row["gpus"]):
            name = {"single": "one GPU", "ddp": "DDP", "fsdp": "FSDP2"}[row["strategy"]]
            if row["strategy"] == "fsdp":
                name += ", gathered once a step" if row.get("fsdp_gather") else ", gathered at each use"
            times = row["images_per_second"] / alone["images_per_second"]
            shown = "" if row is alone else beside(times, f"{times:.2f}", TWO_GPUS, lambda value, least: value >= least)
            way = "recorded" if row["graph"] else "launched"
            cells = [name, way, row["commit"], f"{row['images_per_second']:.1f}", shown, f"{row['peak_gib']:.1f}"]
            lines.append([*cells, first_seconds(row)])
    head = ["strategy", "step", "commit", "images/s", "times one GPU (bar)", "peak GiB a GPU", "first step"]
    return table(head, *lines)


def filled(name: str, text: str) -> str:
    """The page docs/`name` with the tables of its markers as the results have them."""
    latest, earlier = rows_of(LATEST), rows_of(EARLIER)
    if name == "engine.md":
        tables = {"steps": latest_table(latest), "steps before": earlier_table(earlier), "ratio": ratio_table(latest)}
    else:
        tables = {"two GPUs": two_gpus_table(earlier)}
    return with_tables(name, text, tables)


def main() -> None:
    for name in ("engine.md", "distributed.md"):
        page = ROOT / "docs" / name
        page.write_text(filled(name, page.read_text()))


if __name__ == "__main__":
    main()
