#!/usr/bin/env python3
"""Why Modular MeanFlow is last of the jumps in the plane: its dial l, and along what its derivative is taken.

    python benchmarks/modular_mean_flow.py            (3 variants, 3 seeds, 250 steps: about 1 minute on a free core)
    python benchmarks/modular_mean_flow.py --plot benchmarks/results/methods_modular.json

Eight Gaussians, the network and training of methods_2d.py, equal steps. With l = 1 the loss is, besides what it should
be, the mean of |J (v - u)|^2, J the Jacobian of the jump (docs/methods.md). Where the derivative is taken along the
network's own velocity u and not along v, that term is gone and l = 1 stays.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods_2d import DATA
from methods_plot import CALLS, Panel, plot_panels
from methods_runs import Method, add_options, mean_and_deviation, run_all, told, training_of
from tvmatch.files import write_text
from tvmatch.flow_map import FlowMap
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.objectives import ModularMeanFlow
from tvmatch.objectives.few_step import Draws
from tvmatch.sampling import METHODS as SAMPLERS
from tvmatch.theory import w2_samples


class AlongItself(ModularMeanFlow):
    """The derivative along the network's own velocity, as in improved MeanFlow."""

    def direction(self, draws: Draws) -> Tensor:
        with torch.no_grad():
            return self.flow.velocity(draws.x_t, draws.t, draws.label, draws.w)


VARIANTS: dict[str, tuple[type[ModularMeanFlow], float]] = {
    "along v, l to 0": (ModularMeanFlow, 0.0),
    "along v, l to 1": (ModularMeanFlow, 1.0),
    "along u, l to 1": (AlongItself, 1.0),
}


def measure(job: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """W2 to fresh data by the number of calls, and how far one call spreads the noise."""
    method, largest = VARIANTS[job["variant"]]
    seed, distribution = job["seed"], DATA["eight-gaussians"]()
    source = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    objective = method(FlowMap(MLP(MLPConfig(hidden_size=64, depth=3))), largest=largest)
    label = torch.full((options.batch,), -1)
    flow, training = training_of(options)(
        Method("modular-mean-flow"),
        objective,
        lambda _: (distribution.sample(options.batch, source).float(), label),
        seed,
    )
    judge = torch.Generator().manual_seed(10_000 + seed)
    noise, real = torch.randn(2000, 2, generator=judge), distribution.sample(2000, judge)
    jumped = {str(calls): SAMPLERS["jump"](flow, noise, steps=calls) for calls in CALLS}
    w2 = {calls: w2_samples(points, real) for calls, points in jumped.items()}
    return {**job, "w2": w2, "deviation": float(jumped["1"].std()), "of_data": float(real.std()), **training}


def plot(result: dict[str, Any], path: Path) -> None:
    """W2 of 1, 2 and 4 calls, and how far what one call draws is spread, beside the data."""
    summary = result["summary"]
    distances = [{"method": s["variant"], "calls": int(n), **figure} for s in summary for n, figure in s["w2"].items()]
    spread = [{"method": s["variant"], "calls": 1, **s["deviation"]} for s in summary]
    data = mean_and_deviation([row["of_data"] for row in result["runs"]])["mean"]
    panels = [
        Panel("", "W2 (lower is better)", distances),
        Panel("", "deviation of what one call draws (dashed: the data's)", spread, (data, "data")),
    ]
    plot_panels(panels, f"Modular MeanFlow on eight Gaussians, {result['seeds']} seeds", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 20.0, Path("benchmarks/results/methods_modular.json"))
    parser.set_defaults(steps=250, guided=False)
    options = parser.parse_args()
    if options.plot:
        plot(json.loads(options.plot.read_text()), options.plot.with_suffix(".png"))
        return
    jobs = [{"variant": name, "seed": seed} for seed, name in itertools.product(range(options.seeds), VARIANTS)]
    result = run_all(jobs, measure, options, told(options, ("seeds",)))
    result["summary"] = [
        {
            "variant": name,
            "w2": {n: mean_and_deviation([row["w2"][n] for row in mine]) for n in map(str, CALLS)},
            "deviation": mean_and_deviation([row["deviation"] for row in mine]),
        }
        for name in VARIANTS
        for mine in [[row for row in result["runs"] if row["variant"] == name]]
    ]
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    plot(result, options.out.with_suffix(".png"))
    print("| variant | W2, 1 call | 2 | 4 | deviation of one call |\n|---|---|---|---|---|")
    for row in result["summary"]:
        figures = [*row["w2"].values(), row["deviation"]]
        print(f"| {row['variant']} | " + " | ".join(f"{f['mean']:.3f} ({f['deviation']:.3f})" for f in figures) + " |")


if __name__ == "__main__":
    main()
