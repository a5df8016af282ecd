"""What the cells of a study have shown: means and deviations over seeds, as a table and as a picture."""

import importlib.util
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmatch.ablation.kept import Result
from tvmatch.ablation.study import Study
from tvmatch.ablation.tasks import METRICS
from tvmatch.files import replacing

LABELS = {
    "map_error": "distance to the exact map",
    "w2": "W2",
    "frechet": "Frechet distance",
    "class_accuracy": "class accuracy",
    "gradient_norm": "gradient norm",
    "lipschitz": "Lipschitz constant",
}
FIGURES = ("gradient_norm", "lipschitz")  # of a run, whatever the number of calls


def statistic(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (None for one value)."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def metrics_of(study: Study, rows: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """The task's metrics that every row has (only digits are read by a judge), and whether larger is better."""
    rows = list(rows)
    return {name: larger for name, larger in METRICS[study.task].items() if all(name in row for row in rows)}


def summarise(study: Study, results: dict[tuple[str, int], Result]) -> list[dict[str, Any]]:
    """A row for each variant, guidance scale and number of calls: mean and deviation of every metric over the seeds
    that did not diverge. `results` maps (variant, seed) to results; what is missing is left out."""
    table = []
    metrics = metrics_of(study, (row for result in results.values() for row in result["rows"]))
    for variant in study.variants:
        mine = [result for (name, _), result in results.items() if name == variant]
        good = [result for result in mine if result["diverged"] is None]
        for nfe, w in dict.fromkeys((row["nfe"], row["w"]) for result in good for row in result["rows"]):
            rows = [row for result in good for row in result["rows"] if (row["nfe"], row["w"]) == (nfe, w)]
            line: dict[str, Any] = {"variant": variant, "nfe": nfe, "w": w, "seeds": len(rows)}
            line |= {metric: statistic([row[metric] for row in rows]) for metric in metrics}
            for figure in FIGURES:
                values = [result["figures"][figure] for result in good if figure in result["figures"]]
                line |= {figure: statistic(values)} if values else {}
            line["diverged"] = len(mine) - len(good)
            table.append(line)
        if mine and not good:
            table.append({"variant": variant, "seeds": 0, "diverged": len(mine)})
    return table


def show(value: dict[str, float | None] | None) -> str:
    """`0.123 ± 0.004`, with four digits."""
    if value is None or value["mean"] is None:
        return ""
    deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.2g}"
    return f"{value['mean']:.4g}{deviation}"


def markdown(name: str, study: Study, table: list[dict[str, Any]]) -> str:
    """The table of a study: a line for each variant (and guidance scale, where there are several)."""
    calls = sorted({row["nfe"] for row in table if "nfe" in row})
    several = len({row["w"] for row in table if "w" in row}) > 1
    metrics = list(metrics_of(study, (row for row in table if "nfe" in row)))
    header = ["variant", *(["w"] if several else [])]
    header += [f"{LABELS[metric]}, {nfe} call{'s' if nfe > 1 else ''}" for metric in metrics for nfe in calls]
    header += [LABELS[figure] for figure in FIGURES] + ["seeds"]
    lines = [f"### {name}: {study.title}", "", _row(header), _row(["---"] * len(header))]
    for variant, w in dict.fromkeys((row["variant"], row.get("w")) for row in table):
        rows = {row.get("nfe"): row for row in table if (row["variant"], row.get("w")) == (variant, w)}
        first = next(iter(rows.values()))
        cells = [variant, *([f"{w:g}" if w is not None else ""] if several else [])]
        cells += [show(rows.get(nfe, {}).get(metric)) for metric in metrics for nfe in calls]
        cells += [show(first.get(figure)) for figure in FIGURES]
        cells += [f"{first['seeds']}" + (f" ({first['diverged']} diverged)" if first["diverged"] else "")]
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def require_matplotlib() -> None:
    """`ValueError` where it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("drawing needs matplotlib; install it with: pip install 'tvmatch[plot]'")


def draw(name: str, study: Study, table: list[dict[str, Any]], path: Path) -> None:
    """One panel a metric: bars by variant and number of calls, or lines over w where each variant has several.

    `ValueError` without matplotlib. Written whole or not at all.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    rows = [row for row in table if "nfe" in row]
    if not rows:
        return
    metrics = metrics_of(study, rows)
    lines = len({row["w"] for row in rows}) > 3
    bars = len({_name(row, rows) for row in rows})
    height = 4.2 if lines else 1.4 + 0.55 * len(study.variants) + 0.2 * (bars - len(study.variants))
    figure = Figure(figsize=(6.2 * len(metrics), max(height, 2.6)), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, (metric, larger) in zip(axes, metrics.items(), strict=True):
        _draw_lines(axis, rows, metric) if lines else _draw_bars(axis, rows, metric)
        better = "higher" if larger else "lower"
        (axis.set_ylabel if lines else axis.set_xlabel)(f"{LABELS[metric]} ({better} is better)")
        axis.spines[["top", "right"]].set_visible(False)
    legend = {"loc": "outside lower center", "frameon": False, "fontsize": 8, "handlelength": 4}
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=6, **legend)
    seeds = max(row["seeds"] for row in rows)
    figure.suptitle(f"{study.title} ({study.task}, {seeds} seed{'s' if seeds > 1 else ''}, bars: deviation)")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_bars(axis: Any, rows: list[dict[str, Any]], metric: str) -> None:
    names = list(dict.fromkeys(_name(row, rows) for row in rows))
    calls = sorted({row["nfe"] for row in rows})
    for k, nfe in enumerate(calls):
        found = {_name(row, rows): row[metric] for row in rows if row["nfe"] == nfe}
        axis.barh(
            [i + (k - (len(calls) - 1) / 2) * 0.8 / len(calls) for i in range(len(names))],
            [found[name]["mean"] for name in names],
            0.75 / len(calls),
            xerr=[found[name]["deviation"] or 0 for name in names],
            label=f"{nfe} call{'s' if nfe > 1 else ''}",
        )
    axis.set_yticks(range(len(names)), names)
    axis.locator_params(axis="x", nbins=5)  # the names leave little room for numbers
    axis.invert_yaxis()


def _name(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A bar's name: the variant, with w where it has several."""
    scales = {other["w"] for other in rows if other["variant"] == row["variant"]}
    return row["variant"] if len(scales) == 1 else f"{row['variant']}, w = {row['w']:g}"


def _draw_lines(axis: Any, rows: list[dict[str, Any]], metric: str) -> None:
    """The metric over w: a colour for each number of calls, a style for each variant that has several w."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    several = len({(row["variant"], row["w"]) for row in rows}) > len(variants)
    groups = list(enumerate(variants)) if several else [(0, None)]
    for k, nfe in enumerate(sorted({row["nfe"] for row in rows})):
        for style, variant in groups:
            mine = [row for row in rows if row["nfe"] == nfe and variant in (None, row["variant"])]
            mine.sort(key=lambda row: row["w"])
            calls = f"{nfe} call{'s' if nfe > 1 else ''}"
            axis.errorbar(
                [row["w"] for row in mine],
                [row[metric]["mean"] for row in mine],
                yerr=[row[metric]["deviation"] or 0 for row in mine],
                color=f"C{k}",
                linestyle=("solid", "dashed", "dotted", "dashdot")[style % 4],
                marker="o",
                capsize=3,
                label=calls if len(groups) == 1 else f"{variant}, {calls}",
            )
    axis.set_xlabel("guidance scale w")
