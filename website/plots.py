"""Plots of results that are easier seen than read. A file that lacks what a plot needs has none; its tables stay."""

import io
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Plot = Callable[[Mapping[str, Any]], Figure | None]
matplotlib.rcParams.update(
    {"svg.hashsalt": "tvmatch", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)


def plots_of(stem: str, data: Any) -> dict[str, tuple[str, bytes]]:
    """Name -> (caption, SVG) for the results file `stem`."""
    found = {}
    for prefix, (caption, plot) in PLOTS.items():
        if stem.startswith(prefix) and isinstance(data, Mapping):
            figure = plot(data)
            if figure is not None:
                stream = io.BytesIO()
                figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
                plt.close(figure)
                found[f"{stem}_{prefix}"] = (caption, stream.getvalue())
    return found


def _attention(data: Mapping[str, Any]) -> Figure | None:
    """Milliseconds of each implementation, a panel for each pass, a group for each shape."""
    rows = [
        row for row in data.get("rows", ()) if {"impl", "pass", "ms", "B", "H", "N_q", "D"} <= row.keys() and row["ms"]
    ]
    passes = [name for name in ("forward", "backward") if any(row["pass"] == name for row in rows)]
    if not passes:
        return None
    shapes = list(dict.fromkeys((row["B"], row["H"], row["N_q"], row["D"]) for row in rows))
    names = list(dict.fromkeys(row["impl"] for row in rows))
    figure, axes = plt.subplots(len(passes), 1, figsize=(9, 2.6 * len(passes)), squeeze=False, sharex=True)
    for axis, name in zip(axes[:, 0], passes, strict=True):
        for index, impl in enumerate(names):
            times = {
                (row["B"], row["H"], row["N_q"], row["D"]): row["ms"]
                for row in rows
                if (row["impl"], row["pass"]) == (impl, name)
            }
            places = [shapes.index(shape) + (index - len(names) / 2 + 0.5) * 0.8 / len(names) for shape in times]
            axis.bar(places, list(times.values()), 0.8 / len(names), label=impl)
        axis.set_yscale("log")
        axis.set_ylabel(f"{name}, ms")
        axis.set_xticks(range(len(shapes)), [f"B{b} H{h}\nN{n} D{d}" for b, h, n, d in shapes])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 1.02), ncols=2, frameon=False, fontsize=8)
    return figure


def _digits(data: Mapping[str, Any]) -> Figure | None:
    """Frechet distance against network calls, with real data as the floor."""
    figure, axis = plt.subplots(figsize=(5, 3))
    for key, label in (("tvm", "TVM"), ("flow_matching", "flow matching")):
        points = [(int(calls), row["frechet"]) for calls, row in data.get(key, {}).items() if "frechet" in row]
        if not points:
            plt.close(figure)
            return None
        axis.plot(*zip(*points, strict=True), "o-", label=label)
    if "frechet" in data.get("real", {}):
        axis.axhline(data["real"]["frechet"], color="grey", linestyle=":", label="real, held out")
    axis.set(xscale="log", yscale="log", xlabel="network calls", ylabel="Frechet distance (pixels)")
    axis.legend(frameon=False)
    return figure


def _methods(data: Mapping[str, Any]) -> Figure | None:
    """W2 to the data against calls, a panel for each distribution."""
    rows = [row for row in data.get("summary", ()) if {"data", "method", "calls", "mean"} <= row.keys()]
    lines: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        lines[row["data"]][row["method"]].append((row["calls"], row["mean"]))
    if not lines:
        return None
    figure, axes = plt.subplots(1, len(lines), figsize=(3.4 * len(lines), 3), squeeze=False)
    for axis, (name, methods) in zip(axes[0], lines.items(), strict=True):
        for method, points in methods.items():
            axis.plot(*zip(*sorted(points), strict=True), "o-", markersize=3, label=method)
        axis.set(title=name, xscale="log", xlabel="calls", ylabel="W2")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=5, frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _steps(data: Mapping[str, Any]) -> Figure | None:
    """Images a second of each training step that was measured, on one GPU."""
    needed = {"network", "data", "objective", "batch", "policy", "images_per_second"}
    rows = [row for row in data.get("rows", ()) if needed <= row.keys() and row.get("gpus", 1) == 1]
    if not rows:
        return None
    labels = [
        f"{row['network']} {row['data']}, {row['objective']}, batch {row['batch']}, recompute {row['policy']}"
        + (", graph" if row.get("graph") else "")
        for row in rows
    ]
    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.24 * len(rows)))
    bars = axis.barh(range(len(rows)), [row["images_per_second"] for row in rows])
    axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set(xscale="log", xlabel="images/s")
    axis.invert_yaxis()
    return figure


PLOTS: dict[str, tuple[str, Plot]] = {
    "attention": ("Milliseconds of attention with tangents, by implementation and shape", _attention),
    "digits": ("Frechet distance of digits against network calls, TVM and flow matching", _digits),
    "methods_2d": ("W2 distance to the data against calls, of each method", _methods),
    "train_step": ("Images a second of training steps", _steps),
}
