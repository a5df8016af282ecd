"""The methods side by side on points in the plane: W2 to the data of 1, 2 and 4 calls.

    python benchmarks/methods_2d.py --seconds 30 --seeds 3 --out benchmarks/results/methods_2d.json

Every method trains the same MLP on the same data, at equal `--steps` or equal `--seconds`, with the paper's shares and
times of its own. W2 is exact, by optimal assignment of `--points` samples and as many fresh data points; the figure to
compare with is that of two fresh samples of the data ("data" in the results). Flow matching takes Euler steps.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tvmatch.files import write_text
from tvmatch.flow_map import FlowMap
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.objectives import FlowMatching, Objective
from tvmatch.sampling import euler, sample
from tvmatch.theory import Checkerboard, TwoMoons, eight_gaussians, w2_samples
from tvmatch.training.build import build_objective
from tvmatch.training.config import TrainConfig
from tvmatch.training.ema import EvaluationEma, move_towards

DATA = {"eight-gaussians": eight_gaussians, "two-moons": TwoMoons, "checkerboard": Checkerboard}
METHODS = (
    "terminal-velocity",
    "mean-flow",
    "improved-mean-flow",
    "split-mean-flow",
    "shortcut",
    "alpha-flow",
    "lagrangian",
    "modular-mean-flow",
    "flow-matching",
)
CALLS = (1, 2, 4)


def train(
    objective: Objective, draw: Callable[[int], torch.Tensor], options: argparse.Namespace
) -> tuple[FlowMap, dict]:
    """Train for `options.seconds` or `options.steps`; the evaluation average, and what the training was."""
    flow, began, step = objective.flow, time.perf_counter(), 0
    ema = EvaluationEma(flow, (options.ema,))
    optimizer = torch.optim.AdamW(flow.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    label = torch.full((options.batch,), -1)

    def progress() -> float:
        return (time.perf_counter() - began) / options.seconds if options.seconds else step / options.steps

    while (done := progress()) < 1:
        for group in optimizer.param_groups:  # a short warm-up, then a fall to zero
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 50, 2 * (1 - done))
        objective.advance(done)
        objective.seed(options.seed * 1_000_003 + step)
        optimizer.zero_grad()
        objective(draw(options.batch), label).loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        step += 1
        moving = ema.at(step)
        move_towards(moving if objective.target is None else [*moving, (objective.target, 0.99)], flow)
    return ema.flows[options.ema], {"steps": step, "seconds": time.perf_counter() - began}


def measure(method: str, data: str, options: argparse.Namespace) -> dict:
    """One trained run: W2 to fresh data by the number of calls."""
    distribution, source = DATA[data](), torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)  # initial weights
    flow = FlowMap(MLP(MLPConfig(hidden_size=options.hidden, depth=3)))
    objective = build_objective(TrainConfig(objective=method, guidance="1"), flow)
    flow, training = train(objective, lambda count: distribution.sample(count, source).float(), options)
    judge = torch.Generator().manual_seed(10_000 + options.seed)
    noise, real = torch.randn(options.points, 2, generator=judge), distribution.sample(options.points, judge)
    steps = euler if isinstance(objective, FlowMatching) else sample
    w2 = {str(calls): w2_samples(steps(flow, noise, steps=calls), real) for calls in CALLS}
    return {"method": method, "data": data, "seed": options.seed, "w2": w2, **training}


def floor(data: str, points: int, seed: int) -> float:
    """W2 of two fresh samples: nothing can be expected below it."""
    source = torch.Generator().manual_seed(20_000 + seed)
    return w2_samples(DATA[data]().sample(points, source), DATA[data]().sample(points, source))


def summary(rows: list[dict]) -> list[dict]:
    """Mean and standard deviation over the seeds (deviation None for one seed)."""
    table = []
    for data, method in dict.fromkeys((row["data"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["method"]) == (data, method)]
        for calls in CALLS:
            values = [row["w2"][str(calls)] for row in mine]
            table.append(
                {
                    "data": data,
                    "method": method,
                    "calls": calls,
                    "mean": statistics.mean(values),
                    "deviation": statistics.stdev(values) if len(values) > 1 else None,
                    "seeds": len(values),
                    "steps": statistics.mean(row["steps"] for row in mine),
                }
            )
    return table


def plot(result: dict, path: Path) -> None:
    """One panel a data set: bars of W2 by method and number of calls, the floor as a line. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = list(result["data_w2"])
    figure, axes = plt.subplots(1, len(sets), figsize=(4.6 * len(sets), 4.4), sharey=True, squeeze=False)
    for axis, data in zip(axes[0], sets, strict=True):
        mine = [row for row in result["summary"] if row["data"] == data]
        names = list(dict.fromkeys(row["method"] for row in mine))
        for k, calls in enumerate(CALLS):
            rows = [next(r for r in mine if r["method"] == name and r["calls"] == calls) for name in names]
            axis.barh(
                [i + (k - 1) * 0.27 for i in range(len(names))],
                [row["mean"] for row in rows],
                0.25,
                xerr=[row["deviation"] or 0 for row in rows],
                label=f"{calls} call{'s' if calls > 1 else ''}",
            )
        axis.axvline(result["data_w2"][data], color="black", linestyle="dashed", linewidth=1, label="data against data")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(data)
        axis.set_xlabel("W2 (lower is better)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    axes[0][-1].legend(frameon=False, fontsize=8)
    budget = f"{result['seconds']:g} s" if result["seconds"] else f"{result['steps']} steps"
    figure.suptitle(f"{budget} of training each, {result['seeds']} seed(s), {result['points']} points")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, help="training time of each run")
    budget.add_argument("--steps", type=int, help="training steps of each run (default 2000)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--points", type=int, default=2000, help="samples of the assignment")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.99, help="decay of the weights that are judged")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--note", default="", help="what was reduced, kept in the results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/methods_2d.json"))
    options = parser.parse_args()
    if not options.seconds and not options.steps:
        options.steps = 2000
    torch.set_num_threads(1)
    runs = list(itertools.product(range(options.seeds), options.data, options.methods))
    rows, began = [], time.perf_counter()
    result = {
        "machine": f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}",
        "note": options.note,
        **{name: getattr(options, name) for name in ("seconds", "steps", "seeds", "points", "batch", "hidden", "ema")},
        "data_w2": {
            data: statistics.mean(floor(data, options.points, seed) for seed in range(options.seeds))
            for data in options.data
        },
    }
    for number, (seed, data, method) in enumerate(runs, 1):
        rows.append(measure(method, data, argparse.Namespace(**vars(options), seed=seed)))
        left = (time.perf_counter() - began) * (len(runs) - number) / number
        figures = " ".join(f"{calls}:{value:.3f}" for calls, value in rows[-1]["w2"].items())
        print(f"{number}/{len(runs)} {data} {method} seed {seed}: W2 {figures}, {left:.0f} s left", flush=True)
        result |= {"planned_runs": len(runs), "summary": summary(rows), "runs": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(
            options.out, json.dumps(result, indent=1) + "\n"
        )  # after each: a run that is stopped leaves its rows
    plot(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
