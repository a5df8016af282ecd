"""Bars of the methods side by side: a panel for each data set, a bar for each number of calls. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

CALLS = (1, 2, 4)


class Panel(NamedTuple):
    """One panel: rows with method, calls, mean and deviation, and a line to compare with."""

    title: str
    label: str
    rows: Sequence[dict[str, Any]]
    line: tuple[float, str] | None = None
    logarithmic: bool = False


def plot_panels(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Methods in the order of their mean in one call, over the panels of the first kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    one_call: dict[str, list[float]] = {}
    for panel in panels:
        if panel.label == panels[0].label:
            for row in panel.rows:
                if row["calls"] == CALLS[0]:
                    one_call.setdefault(row["method"], []).append(row["mean"])
    names = sorted(one_call, key=lambda name: sum(one_call[name]) / len(one_call[name]))
    height = 1.6 + 0.36 * len(names)
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels) + 2.4, height), sharey=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for k, calls in enumerate(CALLS):
            rows = {row["method"]: row for row in panel.rows if row["calls"] == calls}
            here = [(i, rows[name]) for i, name in enumerate(names) if name in rows]
            axis.barh(
                [i + (k - 1) * 0.27 for i, _ in here],
                [row["mean"] for _, row in here],
                0.25,
                xerr=[row["deviation"] or 0 for _, row in here],
                error_kw={"linewidth": 0.8},
                label=f"{calls} call{'s' if calls > 1 else ''}",
            )
        if panel.line is not None:
            axis.axvline(panel.line[0], color="black", linestyle="dashed", linewidth=1, label=panel.line[1])
        if panel.logarithmic:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(panel.title)
        axis.set_xlabel(panel.label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, ncols=4, loc="lower center", fontsize=9)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=120)
