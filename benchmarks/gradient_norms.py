"""Gradient norms of TVM and MeanFlow as the guidance scale w grows.

    python benchmarks/gradient_norms.py --workers 2        (the committed results: 5 methods, 4 scales, 3 seeds)

Each method trains the same MLP on points of two classes at each w of `--scales`. The figure is the norm of the whole
gradient before clipping, as the mean of the second half of the steps. Bar: that of TVM at w = 4 is within 3 times that
at w = 1. MeanFlow's network is not scaled by w in its paper, so that it is shown so, with its adaptive weight and with
plain squares, and scaled, as `tvmatch train` and every comparison of this library has it. TVM is also shown without
scaled parameterisation and weight 1/w^2, which are there to keep its gradient even. What OUT holds is not computed
again; an OUT of other settings is refused.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kept_rows import kept_rows, machine
from tvmatch.ablation.points import CLASSES, PointSource
from tvmatch.files import write_text
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.objectives import MeanFlow, Objective, TerminalVelocityMatching
from tvmatch.provenance import commit
from tvmatch.training.ema import move_towards

BAR = 3.0  # of TVM's norm at w = 4 over that at w = 1
METHODS: dict[str, Callable[[MLP, FixedGuidance], Objective]] = {
    "TVM": lambda network, w: TerminalVelocityMatching(FlowMap(network), guidance=w),
    "TVM, neither scaled nor weighted": lambda network, w: TerminalVelocityMatching(
        FlowMap(network, scaled=False), guidance=w, weighted=False
    ),
    "MeanFlow": lambda network, w: MeanFlow(FlowMap(network, scaled=False), guidance=w),
    "MeanFlow, scaled": lambda network, w: MeanFlow(FlowMap(network), guidance=w),
    "MeanFlow, plain squares": lambda network, w: MeanFlow(FlowMap(network, scaled=False), guidance=w, power=0.0),
}


def run(method: str, w: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run: the norms of its steps, summed up."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    source, order = PointSource(), np.random.default_rng(seed)
    objective = METHODS[method](MLP(MLPConfig(2, CLASSES, options.hidden, 3, as_pictures=True)), FixedGuidance(w))
    flow = objective.flow
    optimizer = torch.optim.AdamW(flow.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    norms, losses = [], []
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 50)
        chosen = order.integers(len(source), size=options.batch)
        objective.seed(seed * 1_000_003 + step)
        optimizer.zero_grad()
        loss = objective(torch.from_numpy(source.batch(chosen)), torch.from_numpy(source.labels[chosen])).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(flow.parameters(), options.clip)))
        losses.append(loss.item())
        optimizer.step()
        if objective.target is not None:
            move_towards([(objective.target, 0.99)], flow)
    half = norms[options.steps // 2 :]
    return {
        "method": method,
        "w": w,
        "seed": seed,
        "norm": statistics.fmean(half),
        "spread": statistics.stdev(half) / statistics.fmean(half),  # from step to step, relative
        "largest": max(half),
        "first": statistics.fmean(norms[:10]),
        "loss": statistics.fmean(losses[options.steps // 2 :]),
        "machine": machine(),
        "commit": options.commit,
    }


def summary(rows: list[dict]) -> list[dict]:
    """Mean and deviation over seeds, and the ratio of means to w = 1."""
    table = []
    for method, w in sorted(
        {(row["method"], row["w"]) for row in rows}, key=lambda k: (list(METHODS).index(k[0]), k[1])
    ):
        mine = [row for row in rows if (row["method"], row["w"]) == (method, w)]
        seeds = {row["seed"] for row in mine}
        line: dict[str, Any] = {"method": method, "w": w, "seeds": len(mine)}
        for name in ("norm", "spread", "largest", "first"):
            values = [row[name] for row in mine]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            line[name] = {"mean": statistics.fmean(values), "deviation": deviation}
        one = {r["seed"]: r["norm"] for r in rows if (r["method"], r["w"]) == (method, 1.0) and r["seed"] in seeds}
        ratios = [row["norm"] / one[row["seed"]] for row in mine if row["seed"] in one]
        if ratios:
            deviation = statistics.stdev(ratios) if len(ratios) > 1 else None
            line["ratio"] = {"mean": statistics.fmean(ratios), "deviation": deviation}
        table.append(line)
    return table


def plot(result: dict, path: Path) -> None:
    """Left the norm over w, right its ratio to that of w = 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for method in METHODS:
        for axis, name in zip(axes, ("norm", "ratio"), strict=True):
            mine = [row for row in result["summary"] if row["method"] == method and name in row]
            axis.errorbar(
                [row["w"] for row in mine],
                [row[name]["mean"] for row in mine],
                yerr=[row[name]["deviation"] or 0 for row in mine],
                marker="o",
                capsize=3,
                label=method,
            )
    axes[1].plot([4], [BAR], marker="_", markersize=18, color="black", linestyle="none", label="bar for TVM at w = 4")
    axes[0].set_ylabel("gradient norm before clipping")
    axes[1].set_ylabel("ratio to w = 1")
    for axis in axes:
        axis.set(xlabel="guidance scale w", xscale="log")
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(result["scales"], [f"{w:g}" for w in result["scales"]])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    least, most = (pick(row["seeds"] for row in result["summary"]) for pick in (min, max))
    seeds = f"{most} seeds" if least == most else f"{least} to {most} seeds"
    figure.suptitle(f"{result['steps']} steps on points of two classes, {seeds}, second half; bars: deviation")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only-plot", action="store_true", help="draw what OUT holds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/methods_gradient_norms.json"))
    options = parser.parse_args()
    if options.only_plot:
        plot(json.loads(options.out.read_text()), options.out.with_suffix(".png"))
        return
    settings = {name: getattr(options, name) for name in ("steps", "batch", "hidden", "learning_rate", "clip")}
    rows = kept_rows(options.out, settings)
    options.commit = commit()
    there = {(row["method"], row["w"], row["seed"]) for row in rows}
    planned = [(m, w, seed) for seed, m, w in itertools.product(range(options.seeds), METHODS, options.scales)]
    left = [case for case in planned if case not in there]
    print(f"{len(planned)} runs, {len(planned) - len(left)} of them done already", flush=True)
    result: dict[str, Any] = {"machine": machine(), "seeds": options.seeds, "scales": options.scales, **settings}
    began = time.perf_counter()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, *case, options): case for case in left}
        for done, future in enumerate(as_completed(futures), 1):
            rows.append(future.result())
            result |= {"bar": BAR, "summary": summary(rows), "rows": rows}
            write_text(options.out, json.dumps(result, indent=1) + "\n")
            seconds = (time.perf_counter() - began) / done * (len(left) - done)
            print(f"{done}/{len(left)} {futures[future]}: {rows[-1]['norm']:.3g}, {seconds:.0f} s left", flush=True)
    found = json.loads(options.out.read_text())
    plot(found, options.out.with_suffix(".png"))
    for row in found["summary"]:
        print(f"{row['method']:>34} w {row['w']:g}: {row['norm']['mean']:.3g}, ratio {row['ratio']['mean']:.2f}")


if __name__ == "__main__":
    main()
