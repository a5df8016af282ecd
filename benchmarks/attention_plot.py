"""Draw the figures of benchmarks/attention.py: one group of bars a shape, forward above, backward below."""

from __future__ import annotations

import json
from pathlib import Path


def plot(source: Path) -> None:
    """Write SOURCE with the suffix .png. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from attention import SHAPES

    data = json.loads(source.read_text())
    names = list(dict.fromkeys(r["impl"] for r in data["rows"]))
    figure, axes = plt.subplots(2, 1, figsize=(11, 7.5), sharex=True)
    for axis, name, column in zip(axes, ("forward", "backward"), (1, 2), strict=True):
        for i, impl in enumerate(names):
            rates = {
                (r["B"], r["H"], r["N_q"], r["D"]): r["fraction_of_matmul"]
                for r in data["rows"]
                if r["impl"] == impl and r["pass"] == name
            }
            if rates:
                width = 0.8 / len(names)
                x = [j + (i - len(names) / 2 + 0.5) * width for j in range(len(SHAPES))]
                bars = axis.bar(x, [rates.get(s[0], 0) for s in SHAPES], width, label=impl, color=f"C{i}")
                if impl == "tvmatch":
                    labels = axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
                    for label in labels:  # above the dashed line of the bar
                        label.set(zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        for j, shape in enumerate(SHAPES):
            axis.hlines(shape[column], j - 0.42, j + 0.42, colors="black", linestyles="dashed", linewidth=1)
        axis.set_ylabel(f"{name}, fraction of the matmul rate")
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xticks(range(len(SHAPES)), [f"B{s[0][0]} H{s[0][1]}\nN{s[0][2]} D{s[0][3]}" for s in SHAPES])
    axes[0].legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.2), ncols=len(names), frameon=False)
    axes[0].set_title(
        f"Dual attention, {data['device']}, bfloat16, matmul {data['matmul_tflops']:.0f} TFLOP/s (dashed: the bar)"
    )
    figure.tight_layout()
    figure.savefig(source.with_suffix(".png"), dpi=120)
    print(source.with_suffix(".png"))
