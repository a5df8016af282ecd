"""What bound.py and gradient_norms.py found, as tables for docs/theory.md."""

from typing import Any

from flatness import DIGITS_LEVELS, POINTS_LEVELS, at_equal_loss
from kept_rows import sources
from methods_runs import mean_and_deviation
from tvmatch.ablation.report import show

NEAR = 1e-9  # relative: two sides that differ by less are the same pairing


def bound_table(result: dict[str, Any]) -> str:
    """Both sides at every moment, means over seeds; single ratios from the least to the largest."""
    rows = result["rows"]
    ratios = [row["right"] / row["w2_squared"] for row in rows]
    apart = sum(row["w2_squared"] < row["coupled"] * (1 - NEAR) for row in rows)
    lines = [
        f"Held at {result['hold']} of {result['evaluated']} evaluated points; right over left side from "
        f"{min(ratios):.2g} to {max(ratios):.2g}, point by point. W2^2 is below E\\|delta\\|^2 at {apart} of them. "
        f"{result['machine']} ({sources(rows)}); {result['points']} points, hidden size {result['hidden']}, batch "
        f"{result['batch']}; learning rate {result['learning_rate']:g}.",
        "",
        "| data | network | step | seeds | W2^2 | E\\|delta\\|^2 | right side | looseness | single ratios "
        "| int E\\|d1\\|^2 | int E\\|d2\\|^2 | largest L | int L |",
        "|" + "---|" * 13,
    ]
    for row in result["summary"]:
        here = [
            ratio
            for ratio, single in zip(ratios, rows, strict=True)
            if all(single[name] == row[name] for name in ("data", "network", "step"))
        ]
        cells = [row["data"], row["network"], str(row["step"]), str(row["seeds"])]
        cells += [show(row[name]) for name in ("w2_squared", "coupled", "right")]
        cells += [f"{row['looseness']:.2g}", f"{min(here):.2g} to {max(here):.2g}"]
        cells += [show(row[name]) for name in ("terminal", "velocity", "lipschitz", "growth")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def flatness_table(result: dict[str, Any]) -> str:
    """The largest slope on eight Gaussians at equal int E|d2|^2, beside that after equal steps."""
    rows = [row for row in result["rows"] if row["data"] == "eight-gaussians"]
    told = (
        "Largest \\|du/dx\\|, mean and deviation over the seeds that came so far (in brackets how many, if not all), "
        "linear between two moments."
    )
    return "\n".join([told, "", *_slopes(rows, "velocity", POINTS_LEVELS, result["moments"])])


def digits_flatness_table(result: dict[str, Any]) -> str:
    """The same on digits at equal loss on held-out ones, as flatness.py found it."""
    rows = result["rows"]
    told = f"{result['seeds']} seeds; {result['machine']} ({sources(rows)}); batch {result['batch']}."
    return "\n".join([told, "", *_slopes(rows, "loss", DIGITS_LEVELS, result["moments"])])


def _slopes(rows: list[dict[str, Any]], loss: str, levels: tuple[float, ...], moments: list[int]) -> list[str]:
    """A line a network: at each level of the loss, and after each number of steps."""
    table = {(row["network"], row["level"]): row for row in at_equal_loss(rows, loss, levels)}
    moments = [step for step in moments if step > 0]
    columns = [f"at {level:g}" for level in levels] + [f"{step} steps" for step in moments]
    lines = [f"| network | {' | '.join(columns)} |", "|" + "---|" * (1 + len(columns))]
    for name in dict.fromkeys(row["network"] for row in rows):
        cells = [_told(table[name, level]) for level in levels]
        for step in moments:
            found = [row["lipschitz"] for row in rows if row["network"] == name and row["step"] == step]
            cells.append(show(mean_and_deviation(found)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _told(row: dict[str, Any]) -> str:
    if not row["seeds"]:
        return "not reached"
    return show(row) + ("" if row["seeds"] == row["of"] else f" ({row['seeds']} of {row['of']})")


def norms_table(result: dict[str, Any]) -> str:
    """Norms and their ratio to w = 1, mean and deviation over seeds."""
    lines = [
        f"{result['machine']} ({sources(result['rows'])}); {result['steps']} steps of {result['batch']}, hidden size "
        f"{result['hidden']}.",
        "",
        "| method | w | seeds | gradient norm | ratio to w = 1 |",
        "|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        cells = [row["method"], f"{row['w']:g}", str(row["seeds"]), show(row["norm"]), show(row.get("ratio"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
