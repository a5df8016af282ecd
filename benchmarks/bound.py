"""The bound of the paper's theorem through training: both sides at several moments of runs whose flow is known.

    python benchmarks/bound.py --workers 2        (the committed results: 7 cases, 3 seeds, some 15 minutes of one core)

TVM trains an MLP on points in the plane: a Gaussian (flow in closed form) and mixtures (flow to a tolerance). At each
of `--moments` training steps the evaluation average is frozen, and both sides of

    W2^2( (x + f(., 1, 0))_# p_1 , p_0 )  <=  2 int_0^1 exp(2 int_0^s L(r) dr) ( E|d1(s)|^2 + E|d2(s)|^2 ) ds

are computed in float64 on the same `--points` points (`tvmatch.theory.bound`). The program fails if one of them does
not hold. On one mixture the semi-Lipschitz changes are removed, each alone and all together: their Lipschitz constants
are the largest Jacobian norms met on the way, estimates from below. What OUT holds is not computed again; an OUT of
other settings is refused.
"""

import argparse
import copy
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from kept_rows import kept_rows, machine
from tvmatch.files import write_text
from tvmatch.flow_map import FlowMap
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.provenance import commit
from tvmatch.theory import Gaussian, GaussianMixture, eight_gaussians, evaluate_bound
from tvmatch.training.ema import EvaluationEma, move_towards

DECAY = 0.99
CHANGES: dict[str, dict[str, Any]] = {
    "paper": {},
    "LayerNorm for RMSNorm": {"norm": "layer"},
    "no modulation norm": {"modulation_norm": False},
    "Xavier for spectral": {"initialisation": "xavier"},
    "none of them": {"norm": "layer", "modulation_norm": False, "initialisation": "xavier"},
}


def gaussian() -> Gaussian:
    """Standard deviations 1.2 and 0.3, axes turned, mean away from the origin."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    covariance = turn @ torch.diag(torch.tensor([1.44, 0.09], dtype=torch.float64)) @ turn.T
    return Gaussian(torch.tensor([0.5, -0.3], dtype=torch.float64), (covariance + covariance.T) / 2)


def two_gaussians() -> GaussianMixture:
    """Two unequal Gaussians."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.3]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.3, 0.7]).double(), means, torch.tensor([0.4, 0.3]).double())


DATA = {"gaussian": gaussian, "two-gaussians": two_gaussians, "eight-gaussians": eight_gaussians}


def run(data: str, change: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One run: a row for each moment."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    distribution, source = DATA[data](), torch.Generator().manual_seed(seed)
    flow = FlowMap(MLP(MLPConfig(hidden_size=options.hidden, depth=3, **CHANGES[change])))
    objective = TerminalVelocityMatching(flow)
    ema = EvaluationEma(flow, (DECAY,))
    optimizer = torch.optim.AdamW(flow.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    label = torch.full((options.batch,), -1)
    noise = torch.randn(options.points, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(10_000 + seed))
    rows = []
    for step in range(max(options.moments) + 1):
        if step in options.moments:
            sides = judge(ema, distribution, noise, options.grid, options.iterations)
            case = {"data": data, "network": change, "seed": seed, "step": step}
            rows.append(case | sides | {"machine": machine(), "commit": options.commit})
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 50)
        objective.seed(seed * 1_000_003 + step)
        optimizer.zero_grad()
        objective(distribution.sample(options.batch, source).float(), label).loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        move_towards([*ema.at(step), (objective.target, DECAY)], flow)
    return rows


def judge(
    ema: EvaluationEma, distribution: Gaussian | GaussianMixture, noise: torch.Tensor, grid: int, iterations: int
) -> dict[str, Any]:
    """Both sides for the averaged weights."""
    flow = copy.deepcopy(ema.flows[DECAY]).double()
    generator = torch.Generator().manual_seed(0)
    bound = evaluate_bound(flow, distribution, noise, steps=grid, iterations=iterations, generator=generator)
    growth = torch.trapezoid(bound.lipschitz, bound.s)
    return {
        "w2_squared": bound.w2_squared,
        "coupled": bound.coupled,
        "right": bound.right,
        "holds": bound.holds,
        "terminal": float(torch.trapezoid(bound.terminal, bound.s)),
        "velocity": float(torch.trapezoid(bound.velocity, bound.s)),
        "lipschitz": float(bound.lipschitz.max()),
        "growth": float(growth),  # int_0^1 L, whose double is in the exponent
    }


def summary(rows: list[dict]) -> list[dict]:
    """Mean and deviation over seeds; the looseness is that of logarithms, exp(mean(log(right / left)))."""
    table = []
    keys = dict.fromkeys((row["data"], row["network"], row["step"]) for row in rows)
    for data, network, step in keys:
        mine = [r for r in rows if (r["data"], r["network"], r["step"]) == (data, network, step)]
        line = {
            "data": data,
            "network": network,
            "step": step,
            "seeds": len(mine),
            "hold": sum(r["holds"] for r in mine),
        }
        for name in ("w2_squared", "coupled", "right", "terminal", "velocity", "lipschitz", "growth"):
            values = [row[name] for row in mine]
            line[name] = {
                "mean": statistics.fmean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
            }
        line["looseness"] = math.exp(statistics.fmean(math.log(r["right"] / r["w2_squared"]) for r in mine))
        table.append(line)
    return table


def plot(result: dict, path: Path) -> None:
    """Above, both sides over training for each data set; below, the Lipschitz constants without each change."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = result["summary"]
    figure, axes = plt.subplots(1, len(DATA) + 1, figsize=(4.6 * (len(DATA) + 1), 4.2), layout="constrained")
    for axis, data in zip(axes, DATA, strict=False):
        mine = [row for row in table if (row["data"], row["network"]) == (data, "paper")]
        for name, label in (
            ("right", "right side"),
            ("coupled", "E|x^_0 - x_0|^2"),
            ("w2_squared", "left side, W2^2"),
            ("velocity", "int E|d2|^2: velocity"),
            ("terminal", "int E|d1|^2: terminal velocity"),
        ):
            style = {"linestyle": "dotted"} if label.startswith("int") else {"marker": "o"}
            style |= {"linestyle": "dashed", "marker": "x"} if name == "coupled" else {}
            values = [r[name]["mean"] or math.nan for r in mine]  # zero has no place on this axis
            axis.plot([r["step"] for r in mine], values, label=label, **style)
        axis.set(yscale="log", xlabel="training step", title=data)
        axis.set_xscale("symlog", linthresh=50)
        steps = [row["step"] for row in mine]
        axis.set_xlim(-8, 1.25 * max(steps))
        axis.set_xticks(steps, [str(step) for step in steps])
    legend = {"frameon": False, "fontsize": 8}
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, **legend)
    last = axes[-1]
    for change in CHANGES:
        mine = [r for r in table if (r["data"], r["network"]) == ("eight-gaussians", change) and r["step"] > 0]
        last.errorbar(
            [row["step"] for row in mine],
            [row["lipschitz"]["mean"] for row in mine],
            yerr=[row["lipschitz"]["deviation"] or 0 for row in mine],
            marker="o",
            capsize=3,
            label=change,
        )
    last.set(xlabel="training step", title="largest |du/dx|, eight-gaussians", ylim=(0, None))
    last.legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    least, most = (pick(row["seeds"] for row in table) for pick in (min, max))
    seeds = f"{most} seeds" if least == most else f"{least} to {most} seeds"
    figure.suptitle(f"The bound through training, {result['points']} points, means of {seeds}")
    figure.savefig(path, dpi=110)


def write(result: dict, rows: list[dict], out: Path) -> None:
    """Rows and their summary, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    result |= {
        "evaluated": len(rows),
        "hold": sum(row["holds"] for row in rows),
        "summary": summary(rows),
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--moments", type=int, nargs="+", default=[0, 25, 50, 100, 200, 400])
    parser.add_argument("--points", type=int, default=128)
    parser.add_argument("--grid", type=int, default=12, help="intervals of the integrals")
    parser.add_argument("--iterations", type=int, default=4, help="of the power iteration")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only-plot", action="store_true", help="draw what OUT holds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/methods_bound.json"))
    options = parser.parse_args()
    if options.only_plot:
        plot(json.loads(options.out.read_text()), options.out.with_suffix(".png"))
        return
    names = ("moments", "points", "grid", "iterations", "batch", "hidden", "learning_rate")
    settings = {name: getattr(options, name) for name in names}
    result: dict[str, Any] = {"machine": machine(), "seeds": options.seeds, **settings}
    rows = kept_rows(options.out, settings)
    options.commit = commit()
    cases = [(data, "paper") for data in DATA] + [
        ("eight-gaussians", change) for change in CHANGES if change != "paper"
    ]
    there = {(row["data"], row["network"], row["seed"]) for row in rows}
    planned = [(*case, seed) for seed, case in itertools.product(range(options.seeds), cases)]
    left = [case for case in planned if case not in there]
    print(f"{len(planned)} runs, {len(planned) - len(left)} of them done already", flush=True)
    began = time.perf_counter()
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, *case, options): case for case in left}
        for done, future in enumerate(as_completed(futures), 1):
            rows += future.result()
            write(result, rows, options.out)
            last = rows[-1]
            seconds = (time.perf_counter() - began) / done * (len(left) - done)
            print(
                f"{done}/{len(left)} {' '.join(map(str, futures[future]))}: W2^2 {last['w2_squared']:.3g} <= "
                f"{last['right']:.3g}, {seconds:.0f} s left",
                flush=True,
            )
    plot(result, options.out.with_suffix(".png"))
    failed = [row for row in rows if not row["holds"]]
    if failed:
        sys.exit(f"the bound does not hold at {len(failed)} of {len(rows)} points: {failed[0]}")


if __name__ == "__main__":
    main()
