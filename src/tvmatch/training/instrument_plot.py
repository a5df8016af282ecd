"""One picture of what the instruments of a run have shown (docs/stability.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tvmatch.files import replacing
from tvmatch.training.run_folder import read_config
from tvmatch.training.time_bins import BINS

RECENT = 0.2  # the heat maps show the last fifth of the run
LINES = {  # title -> (figures, logarithmic scale)
    "losses": (("loss", "terminal", "boundary"), True),
    "norms of F and of (t - s) dF/ds": (("output_rms", "slope_rms"), True),
    "gradient norm, before clipping": (("gradient_norm",), True),
    "largest attention logit": (("largest_attention_logit",), False),
    "share of skipped steps": (("skipped_share",), False),
}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, but for a last one that a kill has cut short. `ValueError` if there is none."""
    read_config(run)  # an error of its own for a folder that is no run
    path = run / "metrics.jsonl"
    try:
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    lines = lines[:-1] if lines and not lines[-1].endswith("\n") else lines
    if not lines:
        raise ValueError(f"{path} holds no figures yet; a run writes them every --log-every steps.")
    try:
        figures = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON: {error}") from error
    for number, line in enumerate(figures, start=1):
        if not isinstance(line, dict) or "step" not in line:
            raise ValueError(f"{path}, line {number}, has no step: it is not what a run wrote. Take it out.")
    return figures


def mean_by_time(lines: list[dict[str, Any]], figure: str) -> np.ndarray:
    """The mean of a figure in every bin over some lines, weighted by samples: [t, s] or [t]; NaN in empty bins."""
    rows = [row for line in lines for row in line.get("by_time", {}).get(figure, [])]
    if not rows:
        return np.full((BINS, BINS), np.nan)
    values = np.array(rows)
    times = values.shape[1] - 2
    place = tuple(np.round(values[:, :times] * BINS).astype(int).T)
    total, count = np.zeros((BINS,) * times), np.zeros((BINS,) * times)
    np.add.at(total, place, values[:, -2] * values[:, -1])
    np.add.at(count, place, values[:, -1])
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def draw_instruments(run: Path, out: Path) -> None:
    """Draw losses, norms, attention logits and skipped steps over the run, and where in (t, s) its last fifth stands.

    Writes the PNG `out` whole or not at all. `ValueError` without matplotlib or without figures.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("drawing needs matplotlib; install it with: pip install 'tvmatch[plot]'") from error
    lines = read_metrics(run)
    figure = Figure(figsize=(16, 7.5), layout="constrained")
    axes = figure.subplots(2, 4).flatten()
    for axis, (title, (names, logarithmic)) in zip(axes, LINES.items(), strict=False):
        _draw_lines(axis, lines, names, logarithmic)
        axis.set_title(title)
    clip = read_config(run).clip_gradient
    if np.isfinite(clip):
        axes[2].axhline(clip, color="grey", linestyle=":", label=f"clipped to {clip:g}")
        axes[2].legend(frameon=False)
    recent = [line for line in lines if line["step"] > (1 - RECENT) * lines[-1]["step"]]
    share = f"last {RECENT:.0%}"
    _draw_map(figure, axes[5], mean_by_time(recent, "terminal"), f"terminal loss, {share}")
    _draw_map(figure, axes[6], mean_by_time(recent, "slope_rms"), f"(t - s) dF/ds, {share}")
    boundary = mean_by_time(recent, "boundary")
    if boundary.ndim == 1:
        axes[7].stairs(np.nan_to_num(boundary), np.linspace(0, 1, BINS + 1), fill=True, alpha=0.6)
    axes[7].set(title=f"boundary loss, {share}", xlabel="time r")
    axes[4].set_ylim(bottom=0)
    figure.suptitle(f"{run}, {lines[-1]['step']} steps")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        figure.savefig(file, format="png", dpi=90)


def _draw_lines(axis: Any, lines: list[dict[str, Any]], names: tuple[str, ...], logarithmic: bool) -> None:
    drawn = False
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axis.plot(*zip(*points, strict=True), label=name)
            drawn = drawn or any(value > 0 for _, value in points)
    if logarithmic and drawn:
        axis.set_yscale("log")
    if len(names) > 1 and axis.lines:
        axis.legend(frameon=False)
    axis.set_xlabel("step")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_map(figure: Any, axis: Any, values: np.ndarray, title: str) -> None:
    axis.set(title=title, xlabel="end time s", ylabel="start time t")
    if values.ndim != 2 or np.isnan(values).all():
        axis.text(0.5, 0.5, "no figures", ha="center", transform=axis.transAxes)
        return
    image = axis.imshow(values, origin="lower", extent=(0, 1, 0, 1), cmap="viridis")
    figure.colorbar(image, ax=axis, shrink=0.8)
