#!/usr/bin/env python3
"""Lipschitz constants of the network without each semi-Lipschitz change, at equal loss: networks that have learned less
are flatter, so that constants after equal steps compare how much was learned, too.

    python benchmarks/flatness.py --workers 2        (some 20 minutes of a free core)

TVM trains DiT-Digits/4 on handwritten digits with their classes, without guidance, so that the loss of flow matching on
held-out digits says how well the velocity is known. At each of `--moments` training steps the evaluation average is
measured: that loss, and the largest |du/dx| at 192 noisy held-out digits, from below. Points in the plane are taken
from what bound.py found, where the loss is int E|d2|^2. What OUT holds is not computed again; an OUT of other settings
is refused.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from kept_rows import kept_rows, machine
from tvmatch.ablation.studies import STUDIES
from tvmatch.ablation.tasks import LIPSCHITZ_ITERATIONS, LIPSCHITZ_POINTS, TIMES
from tvmatch.data.digits import digits_source
from tvmatch.data.source import to_network_range
from tvmatch.files import write_text
from tvmatch.flow_map import FlowMap
from tvmatch.interpolant import interpolate
from tvmatch.networks.presets import build_network, network_config
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.provenance import commit
from tvmatch.theory import velocity_lipschitz
from tvmatch.training.ema import EvaluationEma, move_towards

RESULTS = Path(__file__).parent / "results"
CHANGES: dict[str, dict[str, Any]] = STUDIES["network"].variants
DECAY = 0.95  # of the target and of the weights that are measured
POINTS_LEVELS = (1.2, 0.9, 0.6, 0.4)  # of int E|d2|^2
DIGITS_LEVELS = (1.0, 0.8, 0.7, 0.61)  # of the loss on held-out digits


def run(change: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One run: a row for each moment."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    source, order = digits_source("train"), torch.Generator().manual_seed(seed)
    x0, labels = to_network_range(torch.tensor(source.images)), torch.tensor(source.labels)
    config = replace(network_config("DiT-Digits/4", 8, 1, 10), **CHANGES[change])
    flow = FlowMap(build_network(config))
    objective, ema = TerminalVelocityMatching(flow), EvaluationEma(flow, (DECAY,))
    optimizer = torch.optim.AdamW(flow.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    rows = []
    for step in range(max(options.moments) + 1):
        if step in options.moments:
            where = {"network": change, "seed": seed, "step": step}
            rows.append(where | judge(ema.flows[DECAY]) | {"machine": machine(), "commit": options.commit})
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 50)
        chosen = torch.randint(len(x0), (options.batch,), generator=order)
        objective.seed(seed * 1_000_003 + step)
        optimizer.zero_grad()
        objective(x0[chosen], labels[chosen]).loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        move_towards([*ema.at(step), (objective.target, DECAY)], flow)
    return rows


def judge(flow: FlowMap) -> dict[str, float]:
    """The loss of flow matching on all held-out digits, a mean over elements, and the largest |du/dx| on some."""
    source, generator = digits_source("held_out"), torch.Generator().manual_seed(0)
    x0, labels = to_network_range(torch.tensor(source.images)), torch.tensor(source.labels)
    with torch.no_grad():
        t = torch.rand(len(x0), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        found = flow.velocity(interpolate(x0, noise, t), t, labels, torch.ones_like(t))
        loss = float((found - (noise - x0)).square().mean())
    chosen = torch.linspace(0, len(x0) - 1, LIPSCHITZ_POINTS).long()
    slopes = []
    for time_ in TIMES:
        t = torch.full((LIPSCHITZ_POINTS,), time_)
        x = interpolate(x0[chosen], torch.randn(x0[chosen].shape, generator=generator), t)
        args = (x, t, labels[chosen], torch.ones_like(t), LIPSCHITZ_ITERATIONS, generator)
        slopes.append(float(velocity_lipschitz(flow, *args).max()))
    return {"loss": loss, "lipschitz": max(slopes)}


def at_loss(rows: Iterable[dict[str, Any]], loss: str, level: float) -> float | None:
    """The Lipschitz constant where a run's loss first falls to `level`, linear between two moments; None if it never
    does."""
    for before, after in pairwise(sorted(rows, key=lambda row: row["step"])):
        if before[loss] > level >= after[loss]:
            part = (before[loss] - level) / (before[loss] - after[loss])
            return before["lipschitz"] + part * (after["lipschitz"] - before["lipschitz"])
    return None


def at_equal_loss(rows: list[dict[str, Any]], loss: str, levels: Iterable[float]) -> list[dict[str, Any]]:
    """For each network and level the mean and deviation over the runs that came so far."""
    table = []
    for network, level in itertools.product(dict.fromkeys(row["network"] for row in rows), levels):
        mine = [row for row in rows if row["network"] == network]
        runs = [[row for row in mine if row["seed"] == seed] for seed in sorted({row["seed"] for row in mine})]
        found = [slope for run_rows in runs if (slope := at_loss(run_rows, loss, level)) is not None]
        deviation = statistics.stdev(found) if len(found) > 1 else None
        mean = statistics.fmean(found) if found else None
        table.append({"network": network, "level": level, "seeds": len(found), "of": len(runs)})
        table[-1] |= {"mean": mean, "deviation": deviation}
    return table


def points_rows(path: Path = RESULTS / "methods_bound.json") -> list[dict[str, Any]]:
    """Those of bound.py on the mixture on which the changes were removed."""
    return [row for row in json.loads(path.read_text())["rows"] if row["data"] == "eight-gaussians"]


def plot(result: dict, path: Path) -> None:
    """The constant over the loss, through training: points beside digits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    panels = (
        ("eight Gaussians, MLP", points_rows(), "velocity", "int E|d2|^2"),
        ("digits, DiT-Digits/4", result["rows"], "loss", "flow-matching loss on held-out digits"),
    )
    colours = {change: f"C{index}" for index, change in enumerate(CHANGES)} | {"paper": "C0"}
    for axis, (title, rows, loss, label) in zip(axes, panels, strict=True):
        for network, seed in dict.fromkeys((row["network"], row["seed"]) for row in rows):
            mine = [r for r in rows if (r["network"], r["seed"]) == (network, seed) and r["lipschitz"] > 0]
            name = network if seed == 0 and network != "paper" else None
            line = [[row[key] for row in mine] for key in (loss, "lipschitz")]
            axis.plot(*line, marker=".", color=colours[network], label=name, linewidth=1, alpha=0.8)
        axis.set(title=title, xlabel=f"{label} (training goes to the right)", ylabel="largest |du/dx|", yscale="log")
        axis.invert_xaxis()
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.suptitle("Slope over what has been learned: each line one run")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--moments", type=int, nargs="+", default=[0, 25, 50, 100, 150, 200, 300])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only-plot", action="store_true", help="draw what OUT holds")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods_flatness.json")
    options = parser.parse_args()
    if options.only_plot:
        return plot(json.loads(options.out.read_text()), options.out.with_suffix(".png"))
    settings = {name: getattr(options, name) for name in ("moments", "batch", "learning_rate")}
    rows, options.commit = kept_rows(options.out, settings), commit()
    there = {(row["network"], row["seed"]) for row in rows}
    left = [case for case in ((c, s) for s in range(options.seeds) for c in CHANGES) if case not in there]
    began = time.perf_counter()
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, *case, options): case for case in left}
        for done, future in enumerate(as_completed(futures), 1):
            rows += future.result()
            result = {"machine": machine(), "seeds": options.seeds, **settings, "rows": rows}
            write_text(options.out, json.dumps(result, indent=1) + "\n")
            seconds = (time.perf_counter() - began) / done * (len(left) - done)
            print(
                f"{done}/{len(left)} {futures[future]}: {rows[-1]['lipschitz']:.3g}, {seconds:.0f} s left", flush=True
            )
    return plot(json.loads(options.out.read_text()), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
