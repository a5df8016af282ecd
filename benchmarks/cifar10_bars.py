"""The bars of CIFAR-10 and what was measured of each, as the table of docs/evaluation.md tells it."""

import json
from pathlib import Path
from statistics import mean

from cifar10_runs import Run

RESULTS = Path(__file__).parent / "results"
ONE_CALL, LONG = 30.0, {1: 12.0, 4: 9.0}  # Frechet distances after 420 s, and after at most 25 minutes
CHECK, WITHIN = 2.124, 0.01  # FID of the first 10,000 training pictures against all 50,000
LIBRARY = 1e-3  # relative difference from torchmetrics on the same features
SECONDS = 180.0  # to draw and score 50,000 pictures
WORDS = {True: "met", False: "**missed**", None: "**not run**"}


def bars_table(runs: list[Run]) -> str:
    """A line a bar: what, measured, bar and whether it is met."""
    short = [run for run in runs if run.seconds == 420 and run.scored is not None]
    ours, theirs = ([run for run in short if run.method == method] for method in ("tvm", "mean_flow"))
    one = [run.frechet(1) for run in ours]
    quality = json.loads((RESULTS / "quality_h200.json").read_text())
    timed = next(row for run in ours for row in run.whole if row["nfe"] == 1)
    long = [run for run in runs if 420 < run.seconds <= 1500 and run.method == "tvm"]
    best = min(long, key=lambda run: min(row["frechet"] for row in run.whole if row["nfe"] == 1))
    rows = [
        (
            "420 s, DiT-S/4, FID-20k in one call",
            f"{mean(one):.2f}, {len(one)} seeds: {' / '.join(f'{value:.2f}' for value in one)}",
            f"below {ONE_CALL:g}",
            max(one) < ONE_CALL,
        ),
        *(ahead(ours, theirs, calls) for calls in (1, 4)),
        *best_long(best),
        *beside_long(runs, best),
        (
            "50,000 pictures drawn and scored, DiT-S/4, one call",
            f"{timed['seconds']:.0f} s, without Python's start",
            f"under {SECONDS:.0f} s",
            timed["seconds"] < SECONDS,
        ),
        (
            "FID of the first 10,000 training pictures against all 50,000",
            f"{quality['frechet']:.5f}",
            f"{CHECK} within {WITHIN}",
            abs(quality["frechet"] - CHECK) < WITHIN,
        ),
        (
            "the same by torchmetrics, on the same features",
            f"relative difference {quality['relative_difference']:.0e}",
            f"within {LIBRARY:.1%}",
            quality["relative_difference"] < LIBRARY,
        ),
    ]
    lines = ["| what | measured | bar | |", "|---|---|---|---|"]
    for what, measured, bar, met in rows:
        lines.append(f"| {what} | {measured} | {bar} | {WORDS[met]} |")
    return "\n".join(lines)


def ahead(ours: list[Run], theirs: list[Run], calls: int) -> tuple[str, str, str, bool]:
    """TVM beside MeanFlow: met where every seed of three is below every seed of the other."""
    told = [[run.frechet(calls) for run in runs] for runs in (ours, theirs)]
    words = [" / ".join(f"{value:.2f}" for value in values) for values in told]
    met = len(ours) >= 3 and len(theirs) >= 3 and max(told[0]) < min(told[1])
    what = f"TVM beside MeanFlow in {calls} call{'s' if calls > 1 else ''}, equal minutes"
    return what, f"{words[0]} against {words[1]}", "ahead, three seeds", met


def best_long(run: Run) -> list[tuple[str, str, str, bool]]:
    """Of 50,000 samples, both numbers of calls of one run, each at the best of the scales that were scored."""
    rows = []
    for calls, bar in LONG.items():
        row = min((row for row in run.whole if row["nfe"] == calls), key=lambda row: row["frechet"])
        what = f"25 minutes at most, any network, FID-50k in {calls} call{'s' if calls > 1 else ''}"
        told = f"{frechet(row)} ({run.network}, {run.seconds / 60:g} minutes, w = {row['w']:g})"
        rows.append((what, told, f"below {bar:g}", row["frechet"] < bar))
    return rows


def frechet(row: dict) -> str:
    """The Frechet distance of a row of an evaluation; of several seeds of noise their mean and deviation."""
    over = row.get("frechet_over_seeds")
    return f"{row['frechet']:.2f}" + ("" if over is None else f" ± {over:.2f} of {len(row['seeds'])} noises")


def beside_long(runs: list[Run], ours: Run) -> list[tuple[str, str, str, bool | None]]:
    """The same minutes and network for the methods to compare with, each at the best of its scales that were scored."""
    names, rows = {"mean_flow": "MeanFlow", "flow_matching": "flow matching"}, []
    for method, name in names.items():
        equal = (method, ours.seconds, ours.network)
        theirs = [run for run in runs if (run.method, run.seconds, run.network) == equal]
        theirs = [
            run for run in theirs if set(LONG) <= {row["nfe"] for row in run.whole}
        ]  # scored in every bar's calls
        for calls in LONG if theirs else ():
            best = [
                min((row for run in side for row in run.whole if row["nfe"] == calls), key=lambda row: row["frechet"])
                for side in ([ours], theirs)
            ]
            what = f"{ours.seconds / 60:g} minutes, TVM beside {name} in {calls} call{'s' if calls > 1 else ''}"
            told = " against ".join(f"{frechet(row)} (w = {row['w']:g})" for row in best)
            rows.append((what, told, "ahead", best[0]["frechet"] < best[1]["frechet"]))
        if not theirs:
            rows.append((f"the same minutes for {name}", "", "beside TVM", None))
    return rows
