#!/usr/bin/env python3
"""The methods side by side on points in the plane: W2 to the data of 1, 2 and 4 calls.

    python benchmarks/methods_2d.py --workers 14            (11 methods and 5 variants, 3 data sets, 3 seeds: 144 runs)
    python benchmarks/methods_2d.py --passes 4000 --out benchmarks/results/methods_2d_passes.json
    python benchmarks/methods_2d.py --plot benchmarks/results/methods_2d.json

Every method trains the same MLP on the same data for equal CPU time (or equal `--steps`, or equal `--passes` of
arithmetic), with the shares and times of its own paper. W2 is exact, by optimal assignment of `--points` samples and as
many fresh data points; the figure to compare with is that of two fresh samples of the data. Flow matching takes Euler
steps, consistency training puts in fresh noise between calls.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from methods_plot import CALLS, Panel, plot_panels
from methods_runs import METHODS, VARIANTS, add_options, budget_of, mean_and_deviation, run_all, told, training_of
from tvmatch.flow_map import FlowMap
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.sampling import METHODS as SAMPLERS
from tvmatch.sampling import method_of
from tvmatch.theory import Checkerboard, TwoMoons, eight_gaussians, w2_samples

DATA = {"eight-gaussians": eight_gaussians, "two-moons": TwoMoons, "checkerboard": Checkerboard}


def measure(job: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One trained run: W2 to fresh data by the number of calls."""
    method, seed = (METHODS | VARIANTS)[job["method"]], job["seed"]
    distribution, source = DATA[job["data"]](), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # initial weights, and the fresh noise of consistency training
    objective = method.build(FlowMap(MLP(MLPConfig(hidden_size=options.hidden, depth=3))), guidance="1")
    label = torch.full((options.batch,), -1)
    flow, training = training_of(options)(
        method, objective, lambda _: (distribution.sample(options.batch, source).float(), label), seed
    )
    judge = torch.Generator().manual_seed(10_000 + seed)
    noise, real = torch.randn(options.points, 2, generator=judge), distribution.sample(options.points, judge)
    steps = SAMPLERS[method_of(method.objective)]
    w2 = {str(calls): w2_samples(steps(flow, noise, steps=calls), real) for calls in CALLS}
    return {**job, "w2": w2, **training}


def floor(data: str, points: int, seed: int) -> float:
    """W2 of two fresh samples: nothing can be expected below it."""
    source = torch.Generator().manual_seed(20_000 + seed)
    return w2_samples(DATA[data]().sample(points, source), DATA[data]().sample(points, source))


def summary(rows: list[dict]) -> list[dict]:
    """Mean and deviation over the seeds, by data, method and calls."""
    table = []
    for data, method in dict.fromkeys((row["data"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["method"]) == (data, method)]
        steps = statistics.mean(row["steps"] for row in mine)
        for calls in CALLS:
            figures = mean_and_deviation([row["w2"][str(calls)] for row in mine])
            table.append({"data": data, "method": method, "calls": calls, **figures, "steps": steps})
    return table


def plot(result: dict, path: Path) -> None:
    """One panel a data set."""
    panels = [
        Panel(
            data,
            "W2 (lower is better)",
            [row for row in result["summary"] if row["data"] == data],
            (line, "data against data"),
        )
        for data, line in result["data_w2"].items()
    ]
    training = result["training"]
    plot_panels(
        panels, f"{budget_of(training)} of training each, {result['seeds']} seeds, {result['points']} points", path
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 24.0, Path("benchmarks/results/methods_2d.json"), tuple(DATA))
    parser.set_defaults(guided=False)
    parser.add_argument("--points", type=int, default=2000, help="samples of the assignment")
    parser.add_argument("--hidden", type=int, default=64)
    options = parser.parse_args()
    if options.plot:
        return plot(json.loads(options.plot.read_text()), options.plot.with_suffix(".png"))
    jobs = [
        {"data": data, "method": method, "seed": seed}
        for seed, data, method in itertools.product(range(options.seeds), options.data, options.methods)
    ]
    result = run_all(jobs, measure, options, told(options, ("points", "hidden", "seeds")))
    result["data_w2"] = {
        data: statistics.mean(floor(data, options.points, seed) for seed in range(options.seeds))
        for data in options.data
    }
    result["summary"] = summary(result["runs"])
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    try:
        plot(result, options.out.with_suffix(".png"))
    except ImportError:
        print(f"no plot: matplotlib is missing here; elsewhere run it with --plot {options.out}")


if __name__ == "__main__":
    main()
