#!/usr/bin/env python3
"""What a training step of each method costs beside one of flow matching: time and memory.

    python benchmarks/methods_cost.py                       (a GPU: DiT-S/4 on 3x32x32, batch 1024)
    python benchmarks/methods_cost.py --tiny                (a CPU: the digits' network; what others do there disturbs)
    python benchmarks/methods_cost.py --plot RESULTS.json   (draw only; needs matplotlib)

Every step is the trainer's own (`tvmatch.training.bench`): loss, backward, clipping, AdamW, target and two evaluation
averages; blocks compiled on a GPU (`--compile off`: not). What is compiled for one method serves the next. Written
after each method; no method is begun after `--budget` seconds, and a second call goes on with those that are missing.
"""

import argparse
import json
import re
import subprocess
import time
from pathlib import Path

import torch

from tvmatch.files import write_text
from tvmatch.training.bench import FORWARD_PASSES, StepCase, forward_passes, matmul_tflops, measure_step
from tvmatch.training.ranks import Ranks, choose_device

# the first two are what the figure is about; each later one adds little to compile
METHODS = ("flow-matching", "terminal-velocity", *(name for name in FORWARD_PASSES if name[:2] not in ("fl", "te")))
NAMES = {"consistency-training": "consistency training", "inductive-moment-matching": "inductive moment m."}


def measure(options: argparse.Namespace) -> dict:
    """Measure what is missing in `options.out`, and return everything."""
    device = choose_device("auto")
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("no GPU here; use --tiny to see that it runs")
    image_size, channels, batch = (8, 1, options.batch or 32) if options.tiny else (32, 3, options.batch or 1024)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    told = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "network": options.network or ("DiT-Digits/4" if options.tiny else "DiT-S/4"),
        "data": f"{channels}x{image_size}x{image_size}",
        "batch": batch,
        "guidance": options.guidance,
        "compile": options.compile,
    }
    result = {**told, "commit": options.commit or git.stdout.strip(), "rows": []}
    if options.out.exists():
        before = json.loads(options.out.read_text())
        if {name: before.get(name) for name in told} == told:
            result["rows"] = before["rows"]
    began, matmul = time.perf_counter(), matmul_tflops(device)
    done = {row["objective"] for row in result["rows"]}
    for method in (name for name in options.methods if name not in done):
        if time.perf_counter() - began > options.budget:
            print(f"{method} and what follows left out: {options.budget:g} s are over; the same command goes on")
            break
        case = StepCase(
            told["network"],
            image_size,
            channels,
            batch,
            objective=method,
            guidance=options.guidance,
            classes=10,
            compile=options.compile,
        )
        row = measure_step(case, Ranks(device), matmul, options.steps)
        row["forward_passes"] = forward_passes(method, guided=float(options.guidance) != 1)
        result["rows"].append(row)
        memory = "" if row["peak_gib"] is None else f", {row['peak_gib']:.1f} GiB"
        print(
            f"{method:>26}: {row['milliseconds']:.1f} ms{memory}, first step {row['compile_seconds']:.0f} s", flush=True
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, json.dumps(relative(result), indent=1) + "\n")
    return result


def relative(result: dict) -> dict:
    """With time and memory of each row divided by those of flow matching."""
    base = next((row for row in result["rows"] if row["objective"] == "flow-matching"), None)
    for row in result["rows"] if base else ():
        row["times_flow_matching"] = row["milliseconds"] / base["milliseconds"]
        if row["peak_gib"] is not None:
            row["memory_times_flow_matching"] = row["peak_gib"] / base["peak_gib"]
    return result


def plot(result: dict, path: Path) -> None:
    """Bars of time, with the count of forward passes as marks, and of memory, in units of flow matching."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(result["rows"], key=lambda row: row["milliseconds"])
    base = next(row for row in rows if row["objective"] == "flow-matching")
    memory = all("memory_times_flow_matching" in row for row in rows)
    figure, axes = plt.subplots(1, 1 + memory, figsize=(5.5 * (1 + memory) + 1, 4.2), sharey=True, squeeze=False)
    names = [NAMES.get(row["objective"], row["objective"].replace("-", " ")) for row in rows]
    times = [row["times_flow_matching"] for row in rows]
    counted = [row["forward_passes"] / base["forward_passes"] for row in rows]
    axes[0][0].barh(names, times, color="C0")
    for place, pair in enumerate(zip(times, counted, strict=True)):
        axes[0][0].annotate(f"{pair[0]:.2f}", (max(pair), place), (6, -3), textcoords="offset points", fontsize=8)
    axes[0][0].plot(counted, names, "k|", markersize=14, label="arithmetic alone")
    axes[0][0].set_xlabel("time of a step / that of flow matching")
    axes[0][0].legend(frameon=False, loc="lower right")
    if memory:
        bars = axes[0][1].barh(names, [row["memory_times_flow_matching"] for row in rows], color="C1")
        axes[0][1].bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes[0][1].set_xlabel("peak memory / that of flow matching")
    for axis in axes[0]:
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    guided = "no guidance" if float(result["guidance"]) == 1 else f"w = {result['guidance']}"
    figure.suptitle(
        f"{result['network']}, {result['data']}, batch {result['batch']}, {guided}, {result['device']}\n"
        f"flow matching: {base['milliseconds']:.1f} ms" + (f", {base['peak_gib']:.1f} GiB" if memory else "")
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--network", help="a preset (see tvmatch presets)")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--guidance", default="1", help="a scale; 1, the default, costs nothing extra")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--steps", type=int, default=6, help="that are timed, after 8 others; the median counts")
    parser.add_argument("--budget", type=float, default=85.0, help="seconds after which no method is begun")
    parser.add_argument("--commit", default="", help="recorded in the file; default: what git says")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/methods_cost_<device>.json")
    parser.add_argument("--plot", type=Path, metavar="RESULTS", help="draw these results and measure nothing")
    options = parser.parse_args()
    if options.plot:
        return plot(json.loads(options.plot.read_text()), options.plot.with_suffix(".png"))
    if options.out is None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        short = re.search(r"(H200|H100|A100|cpu)", name)
        options.out = Path(f"benchmarks/results/methods_cost_{(short or [name.replace(' ', '_')])[0].lower()}.json")
    result = measure(options)
    try:
        plot(result, options.out.with_suffix(".png"))
    except ImportError:
        print(f"no plot: matplotlib is missing here; elsewhere run it with --plot {options.out}")


if __name__ == "__main__":
    main()
