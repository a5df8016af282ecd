"""The trade-off of guidance and network calls, as a table and as a plot."""

from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

FIGURES = {  # name in a row -> (heading, digits, factor)
    "frechet": ("Frechet", 2, 1.0),
    "kernel": ("kernel x1000", 3, 1000.0),
    "precision": ("precision", 3, 1.0),
    "recall": ("recall", 3, 1.0),
    "density": ("density", 3, 1.0),
    "coverage": ("coverage", 3, 1.0),
    "authenticity": ("authenticity", 3, 1.0),
    "sliced_w2": ("sliced W2", 4, 1.0),
}


def cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Each averaged row as text: the figure, and behind ± its deviation over seeds where there are several. Where not
    all have as many seeds, how many."""
    result, counts = [], [len(row.get("seeds", ())) for row in rows]
    for row, count in zip(rows, counts, strict=True):
        line = {"calls": str(row["nfe"]), "w": f"{row['w']:g}"}
        if len(set(counts)) > 1:
            line["seeds"] = str(count)
        for name, (heading, digits, factor) in FIGURES.items():
            if name not in row:
                continue
            line[heading] = f"{row[name] * factor:.{digits}f}"
            deviation = row.get(f"{name}_over_seeds")
            if deviation is not None:
                line[heading] += f" ± {deviation * factor:.{digits}f}"
        result.append(line)
    return result


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, one row for each number of calls and guidance scale."""
    lines = cells(rows)
    headings = list(lines[0])
    text = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    text += [f"| {' | '.join(line[heading] for heading in headings)} |" for line in lines]
    return "\n".join(text) + "\n"


def plot(rows: Sequence[dict[str, Any]], out: Path) -> bool:
    """Frechet distance over w, and recall over precision, one line a number of calls. Without matplotlib (extra
    `[eval]`) nothing is drawn, and False is returned: the table holds the same figures."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    from tvmatch.files import replacing

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, nfe in enumerate(sorted({row["nfe"] for row in rows})):
        line = sorted((row for row in rows if row["nfe"] == nfe), key=lambda row: row["w"])
        name = f"{nfe} call{'s' if nfe > 1 else ''}"
        scales, distances = [row["w"] for row in line], [row["frechet"] for row in line]
        deviations = [row.get("frechet_over_seeds", nan) for row in line]  # of one seed there is none, not one of zero
        left.errorbar(scales, distances, None if all(map(isnan, deviations)) else deviations, marker="o", label=name)
        precision, recall = ([row[which] for row in line] for which in ("precision", "recall"))
        (drawn,) = right.plot(precision, recall, marker="o", label=name)
        # neighbouring lines have their numbers on different sides: they lie close together
        offset, side = ((5, 4), "left") if index % 2 == 0 else ((-5, -10), "right")
        for row in line:
            place = {"xytext": offset, "textcoords": "offset points", "ha": side}
            text = f"{row['w']:g}"
            right.annotate(text, (row["precision"], row["recall"]), fontsize=8, color=drawn.get_color(), **place)
    left.set(xlabel="guidance scale w", ylabel="Frechet distance")
    right.set(xlabel="precision", ylabel="recall (numbers: w)")
    right.margins(x=0.09, y=0.07)  # numbers beside the outermost points stay inside
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        figure.savefig(file, format="png", dpi=120)
    return True
