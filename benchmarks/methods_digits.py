#!/usr/bin/env python3
"""The methods side by side on handwritten digits: 1, 2 and 4 calls, by a judge and by a Frechet distance.

    python benchmarks/methods_digits.py --workers 14        (11 methods and 2 variants, 3 seeds: 39 runs)
    python benchmarks/methods_digits.py --plot benchmarks/results/methods_digits.json
    python benchmarks/methods_digits.py --network UNet-Tiny --out benchmarks/results/methods_digits_unet.json ...

Every method trains the same network (w = 1.5) for equal CPU time, with the shares and times of its own
paper. Flow matching takes Euler steps, consistency training puts in fresh noise between calls. Where scikit-learn is
missing, --digits takes the pictures from an .npz (images uint8 [N, 8, 8, 1], labels), and the samples, kept in the
folder RESULTS.samples, are judged by the same command on another machine.
"""

import argparse
import importlib.util
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from methods_plot import CALLS, Panel, plot_panels
from methods_runs import METHODS, VARIANTS, add_options, budget_of, mean_and_deviation, run_all, told, training_of
from tvmatch.data.source import to_network_range, to_pictures
from tvmatch.files import replacing
from tvmatch.flow_map import FlowMap
from tvmatch.networks.presets import build_network, network_config
from tvmatch.sampling import draw, method_of

W = 1.5
NETWORK = "DiT-Digits/4"  # the results of another name it
CHOSEN = ("terminal-velocity, target 0.99", "terminal-velocity, every 4th")  # of the variants


def read_digits(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """The training digits, uint8 [N, 8, 8, 1], and their labels."""
    if path is None:
        from tvmatch.data.digits import digits_source

        source = digits_source("train")
        return source.images, source.labels
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def samples_path(out: Path, job: dict[str, Any]) -> Path:
    """Where the samples of one run are kept."""
    return out.with_suffix(".samples") / f"{job['method'].replace(', ', '_').replace(' ', '_')}_{job['seed']}.npz"


def measure(job: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One trained run, whose samples by the number of calls are kept as pictures."""
    method, seed = (METHODS | VARIANTS)[job["method"]], job["seed"]
    images, labels = read_digits(options.digits)
    data = to_network_range(torch.from_numpy(images)), torch.from_numpy(labels)
    source = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    flow = FlowMap(build_network(network_config(options.network, 8, 1, 10)))

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(images), (options.batch,), generator=source)
        return data[0][chosen], data[1][chosen]

    flow, training = training_of(options)(method, method.build(flow, guidance=f"{W}"), batch, seed)
    label, how = torch.arange(options.samples) % 10, method_of(method.objective)
    pictures = {str(n): to_pictures(draw(flow, label, W, n, seed=1000 + seed, method=how)).numpy() for n in CALLS}
    path = samples_path(options.out, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, **pictures)
    return {**job, **training}


def judged(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """With class accuracy and Frechet distance of every run, and their mean and deviation over the seeds."""
    from tvmatch.data.digits import digits_source
    from tvmatch.metrics.judge import DigitsJudge, digits_frechet

    judge, real = DigitsJudge(), digits_source("held_out")
    result["real"] = {
        "class_accuracy": judge.accuracy_on_held_out,
        "frechet": digits_frechet(real.images),
        "pictures": len(real.images),
    }
    for row in result["runs"]:
        if "frechet" in row:
            continue
        with np.load(samples_path(out, row), allow_pickle=False) as pictures:
            label = np.arange(len(pictures[str(CALLS[0])])) % 10
            row["class_accuracy"] = {str(n): judge.class_accuracy(pictures[str(n)], label) for n in CALLS}
            row["frechet"] = {str(n): digits_frechet(pictures[str(n)]) for n in CALLS}
    result["summary"] = [
        {
            "method": method,
            "calls": calls,
            "steps": statistics.mean(row["steps"] for row in mine),
            **{kind: mean_and_deviation([row[kind][str(calls)] for row in mine]) for kind in KINDS},
        }
        for method in dict.fromkeys(row["method"] for row in result["runs"])
        for mine in [[row for row in result["runs"] if row["method"] == method]]
        for calls in CALLS
    ]
    return result


KINDS = {
    "frechet": "Frechet distance in pixels (lower is better)",
    "class_accuracy": "share read as the class asked for",
}


def plot(result: dict, path: Path) -> None:
    """A panel for the distance and one for the judge."""
    panels = [
        Panel(
            "",
            label,
            [{"method": row["method"], "calls": row["calls"], **row[kind]} for row in result["summary"]],
            (result["real"][kind], "held-out digits"),
            logarithmic=kind == "frechet",
        )
        for kind, label in KINDS.items()
    ]
    training = result["training"]
    network = result.get("network", NETWORK)
    plot_panels(
        panels, f"Digits, {network}: {budget_of(training)} of training each, {result['seeds']} seeds, w = {W}", path
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, 58.0, Path("benchmarks/results/methods_digits.json"))
    parser.set_defaults(guided=True, batch=64, learning_rate=1e-3, methods=[*METHODS, *CHOSEN])
    parser.add_argument("--samples", type=int, default=2000, help="pictures for each figure")
    parser.add_argument("--network", default=NETWORK, help="a preset (see tvmatch presets)")
    parser.add_argument("--digits", type=Path, help="an .npz with the training digits (default: of scikit-learn)")
    options = parser.parse_args()
    if not options.plot:
        jobs = [
            {"method": method, "seed": seed}
            for seed, method in itertools.product(range(options.seeds), options.methods)
        ]
        head = told(options, ("samples", "seeds"))
        run_all(jobs, measure, options, head if options.network == NETWORK else head | {"network": options.network})
    out = options.plot or options.out
    if importlib.util.find_spec("sklearn") is None:
        return print(f"not judged: scikit-learn is missing here; elsewhere run it with --plot {out}")
    result = judged(json.loads(out.read_text()), out)
    out.write_text(json.dumps(result, indent=1) + "\n")
    try:
        plot(result, out.with_suffix(".png"))
    except ImportError:
        print(f"no plot: matplotlib is missing here; elsewhere run it with --plot {out}")
    return None


if __name__ == "__main__":
    main()
