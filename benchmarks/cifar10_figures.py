"""The tables of docs/evaluation.md about CIFAR-10, and its pictures, from the committed runs.

    python benchmarks/cifar10_figures.py

writes the tables between their markers, benchmarks/results/cifar10/frechet.png and docs/images/cifar10.png. A test
holds the page to the tables, so that no figure is typed.
"""

from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from PIL import Image

from cifar10_bars import bars_table, frechet
from cifar10_runs import NAMES, Run, alike, frechet_of, pair_of, read_runs
from page_tables import with_tables
from tvmatch.pictures import captioned, save_png

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cifar10"
PAGE = ROOT / "docs" / "evaluation.md"
CALLS = (1, 2, 4)
# The same network and seconds on an H200, 20,000 samples, w = 1.5; measured before this library was written, and told
# by its design (issue 7). The prototype's 72 s of compiling are among its 420.
BEFORE = {
    "official code": {1: 336.0, 2: 338.0, 4: 339.0},
    "prototype": {1: 46.3, 2: 33.3, 4: 31.1},
}
COLOURS = {
    "tvm": "#0b62c4",
    "mean_flow": "#d2691e",
    "consistency_training": "#8e44ad",
    "inductive_moment_matching": "#b8860b",
    "flow_matching": "#2e8b57",
}
SAMPLES = RESULTS / "tvm_1200s_seed0" / "samples_nfe1_w2_seed0.png"
CLASSES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHOWN = 6  # rows of samples in the picture of the README


def quality_table(runs: list[Run]) -> str:
    """A line for each run of 420 s that was scored, after what was measured before, and one for seeds of one pair."""
    lines = [
        "| 420 s, DiT-S/4 | steps | average, w | FID-20k in 1 call | 2 calls | 4 calls |",
        "|---|---|---|---|---|---|",
    ]
    for name, steps in (("official code", "690 of 1,024"), ("prototype", "2,214 of 1,024")):
        lines.append(f"| {name}, w = 1.5 | {steps} | | {' | '.join(f'{BEFORE[name][calls]:g}' for calls in CALLS)} |")
    runs = of_seconds(runs, 420)
    for run in runs:
        cells = [
            f"{run.name}, seed {run.seed}",
            f"{' + '.join(f'{steps:,}' for steps in run.steps)} of {run.batch}",
        ]
        cells += ["{:g}, {:g}".format(*run.chosen)] + [f"{run.frechet(calls):.2f}" for calls in CALLS]
        lines.append(f"| {' | '.join(cells)} |")
    for method in dict.fromkeys(run.method for run in runs):
        same = alike(runs, method)
        if len(same) > 1:
            values = [[run.frechet(calls) for run in same] for calls in CALLS]
            cells = [f"**{mean(found):.2f}** ± {stdev(found):.2f}" for found in values]
            lines.append(f"| **{same[0].name}, {len(same)} seeds** | | | {' | '.join(cells)} |")
    return "\n".join(lines)


def again_table(runs: list[Run]) -> str:
    """Every seed that was trained twice: what it had, beside what its line above has."""
    lines = [
        "| 420 s, DiT-S/4 | commit | average, w | FID-20k in 1 call | 2 calls | 4 calls |",
        "|---|---|---|---|---|---|",
    ]
    for run in of_seconds(runs, 420):
        if run.before is None:
            continue
        for commit, evaluation in (run.before, (run.commit, run.scored)):
            cells = [f"{run.name}, seed {run.seed}", commit, "{:g}, {:g}".format(*pair_of(evaluation))]
            lines.append(f"| {' | '.join(cells + [f'{frechet_of(evaluation, calls):.2f}' for calls in CALLS])} |")
    return "\n".join(lines)


def long_table(runs: list[Run]) -> str:
    """Every score of 50,000 samples: of the longer runs, and of the short ones where there is one."""
    lines = ["| run | trained with | minutes | steps | average | w | FID-50k in 1 call | 2 calls | 4 calls |"]
    lines += ["|" + "---|" * 9]
    for run in runs:
        for w in sorted({row["w"] for row in run.whole}):
            rows = [row for row in run.whole if row["w"] == w]
            name = f"{run.name}, {run.network}, seed {run.seed}"
            cells = [name, run.recipe, f"{run.seconds / 60:g}"]
            cells += [f"{' + '.join(f'{steps:,}' for steps in run.steps)} of {run.batch}"]
            cells += [f"{rows[0]['ema']:g}", f"{w:g}"]
            found = {row["nfe"]: frechet(row) for row in rows}
            lines.append(f"| {' | '.join(cells + [found.get(calls, '') for calls in CALLS])} |")
    return "\n".join(lines)


def of_seconds(runs: list[Run], seconds: int) -> list[Run]:
    """Those that were given so many, and scored."""
    return [run for run in runs if run.seconds == seconds and run.scored is not None]


def scales_table(runs: list[Run]) -> str:
    """Frechet distance of few samples at every guidance scale, of the runs that have it."""
    runs = [run for run in runs if run.tradeoff is not None]
    scales = sorted({row["w"] for run in runs for row in run.tradeoff["rows"]})
    lines = [f"| | calls | {' | '.join(f'w = {w:g}' for w in scales)} |", "|" + "---|" * (2 + len(scales))]
    for run in runs:
        found = {(row["nfe"], row["w"]): f"{row['frechet']:.2f}" for row in run.tradeoff["rows"]}
        for calls in sorted({calls for calls, _ in found}):
            name = f"{run.name}, {run.seconds / 60:g} minutes, seed {run.seed}"
            cells = [name, str(calls), *(found.get((calls, w), "") for w in scales)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(runs: list[Run]) -> str:
    """Where the seconds on the wall of the short runs went."""
    lines = [
        "| | to the first 20 steps | flow matching | to the first 20 of the method | method | outside, two starts of "
        "Python among it | in all | pictures/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in of_seconds(runs, 420):
        *warm, last = run.phases
        cells = [f"{run.name}, seed {run.seed}"]
        for phase in warm:
            cells += [f"{phase.first:.1f}", f"{phase.seconds - phase.first:.1f}"]
        cells += ([] if warm else ["", ""]) + [f"{last.first:.1f}", f"{last.seconds - last.first:.1f}"]
        cells += [f"{run.wall - sum(phase.seconds for phase in run.phases):.0f}", str(run.wall)]
        cells += [" then ".join(f"{phase.images_per_second:,.0f}" for phase in run.phases)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {
    "cifar10 bars": bars_table,
    "cifar10": quality_table,
    "cifar10 again": again_table,
    "cifar10 whole": long_table,
    "cifar10 scales": scales_table,
    "cifar10 time": time_table,
}


def filled(text: str, runs: list[Run]) -> str:
    """The page with the tables of its markers as the results have them."""
    return with_tables(PAGE.name, text, {marker: table(runs) for marker, table in TABLES.items()})


def spread(values: list[float], least: float) -> list[float]:
    """Values pushed upwards where they are closer than `least`, as labels beside lines must be; in their order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    moved = list(values)
    for before, here in pairwise(order):
        moved[here] = max(moved[here], moved[before] + least)
    return moved


def draw(runs: list[Run], path: Path) -> None:
    """Frechet distance over calls beside that over w."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.4, 1])
    begins: list[tuple[str, str, float]] = []  # labels beside the ends of the lines: text, colour, height
    ends: list[tuple[str, str, float]] = []
    for name, (found, marker) in zip(BEFORE, zip(BEFORE.values(), "xs", strict=True), strict=True):
        left.plot(CALLS, [found[calls] for calls in CALLS], ":", marker=marker, color="0.55")
        begins.append((f"{found[CALLS[0]]:.3g}", "0.4", found[CALLS[0]]))
        ends.append((f"{found[CALLS[-1]]:.3g}  {name} (before)", "0.4", found[CALLS[-1]]))
    for method, colour in COLOURS.items():
        scored = alike(runs, method)
        if not scored:
            continue
        means = [mean(run.frechet(calls) for run in scored) for calls in CALLS]
        left.plot(CALLS, means, color=colour, linewidth=2)
        for run in scored:
            left.plot(CALLS, [run.frechet(calls) for calls in CALLS], "o", color=colour, alpha=0.7)
        begins.append((f"{means[0]:.1f}", colour, means[0]))
        seeds = f"{len(scored)} seed{'s' if len(scored) > 1 else ''}"
        ends.append((f"{means[-1]:.1f}  {NAMES[method]}, {seeds}", colour, means[-1]))
    for labels, place, side in ((begins, 0.91, "right"), (ends, 4.4, "left")):
        heights = np.exp(spread([float(np.log(value)) for _, _, value in labels], 0.2))
        for (label, colour, _), height in zip(labels, heights, strict=True):
            left.text(place, height, label, color=colour, fontsize=9, va="center", ha=side)
    left.set(xscale="log", yscale="log", xlim=(0.72, 19), ylim=(7, 500), xlabel="network calls a picture")
    left.set_xticks(CALLS, [str(calls) for calls in CALLS])
    left.set_yticks((10, 20, 50, 100, 200), ("10", "20", "50", "100", "200"))
    left.minorticks_off()
    left.set_ylabel("FID, 20,000 samples")
    left.set_title("420 seconds of training, DiT-S/4, one H200", fontsize=11)
    for run in runs:
        if run.tradeoff is None or run.method not in ("tvm", "mean_flow"):
            continue
        for calls, style in zip(CALLS, ("-", "--", ":"), strict=True):
            line = sorted((row["w"], row["frechet"]) for row in run.tradeoff["rows"] if row["nfe"] == calls)
            name = f"{run.name}, {calls} call{'s' if calls > 1 else ''}"
            right.plot(*zip(*line, strict=True), style, marker="o", color=COLOURS[run.method], label=name)
    right.set(xlabel="guidance scale w", ylim=(14, None))
    right.set_ylabel("FID, 3,000 samples (higher than of 20,000)")
    right.set_title("at each guidance scale, seed 0", fontsize=11)
    right.legend(frameon=False, ncols=2, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 0.7))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def draw_samples(path: Path) -> None:
    """The first samples of the committed grid, one column a class, under the names of the classes."""
    sheet = np.asarray(Image.open(SAMPLES).convert("RGB"))
    cell = sheet.shape[1] // len(CLASSES)
    columns = [sheet[: SHOWN * cell, k * cell : (k + 1) * cell] for k in range(len(CLASSES))]
    save_png(captioned(list(zip(CLASSES, columns, strict=True))), path)


def main() -> None:
    runs = read_runs(RESULTS)
    PAGE.write_text(filled(PAGE.read_text(), runs))
    draw(of_seconds(runs, 420), RESULTS / "frechet.png")
    draw_samples(ROOT / "docs" / "images" / "cifar10.png")


if __name__ == "__main__":
    main()
