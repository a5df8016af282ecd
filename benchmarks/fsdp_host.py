#!/usr/bin/env python3
"""What FSDP2 costs the host: how often it gathers and lets go, and milliseconds of the host a training step.

    torchrun --nproc-per-node 2 benchmarks/fsdp_host.py                                  (CPUs: 28 tiny blocks)
    torchrun --nproc-per-node 2 benchmarks/fsdp_host.py --network DiT-XL/2 --batch 4     (GPUs)

The network has as many weights tensors as DiT-XL/2, and next to no arithmetic, so that what is left is Python. On CPUs
the times are those that the processes compute, not those in which they wait for each other; on GPUs, whose kernels run
beside, they are those that pass on the host, of batches so small that the GPU is never waited for.
"""

import argparse
import cProfile
import dataclasses
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.networks.presets import build_network, network_config
from tvmatch.objectives import Part, TerminalVelocityMatching
from tvmatch.training.distributed import distribute, release
from tvmatch.training.ema import EvaluationEma, move_towards
from tvmatch.training.engine import prepare_objective
from tvmatch.training.ranks import Ranks, join_ranks
from tvmatch.training.step_gradient import StepGradient

SMALL = DiTConfig(image_size=4, channels=2, num_classes=3, patch_size=2, hidden_size=16, depth=28, num_heads=2)
WAYS = {
    "single": ("single", "auto"),
    "ddp": ("ddp", "auto"),
    "fsdp-use": ("fsdp", "use"),
    "fsdp-step": ("fsdp", "step"),
}
WARM_STEPS, STEPS = 3, 5
# what FSDP2 calls its parts in a profile, and what they are called here
COUNTED = {
    "FSDP::all_gather ": "gathers",
    "FSDP::pre_forward": "hooks before a unit's forward",
    "FSDP::pre_backward": "hooks before a unit's backward",
    "FSDP::post_backward_reshard": "hooks after a unit's backward",
    "FSDP::post_backward_reduce": "exchanges of gradients",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="a preset, on latents 4x32x32 (default: 28 blocks of a few weights)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch", type=int, default=2, help="samples of each process")
    parser.add_argument("--profile", type=int, default=0, help="also print so many functions of Python, by time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with join_ranks("ddp", "auto") as ranks:
        if ranks.device.type == "cpu":
            torch.set_num_threads(1)
        for strategy, gather in (WAYS[way] for way in options.ways):
            if strategy == "single":
                row = ranks.on_main(lambda: measure(options, Ranks(ranks.device), "auto"))
            else:
                row = measure(options, dataclasses.replace(ranks, strategy=strategy), gather)
            rows.append(row)
            if ranks.main:
                print(describe(row), flush=True)
    if options.json and ranks.main:
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def measure(options: argparse.Namespace, ranks: Ranks, gather: str) -> dict[str, Any]:
    """Milliseconds of the host by part of a step, medians, and what one step calls how often."""
    step, parts = prepared(options, ranks, gather)
    for number in range(WARM_STEPS):
        step(number)
    seconds = [step(WARM_STEPS + number) for number in range(STEPS)]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step(WARM_STEPS + STEPS)
    with tempfile.TemporaryDirectory() as folder:  # `profiled.events()` takes a minute for what this gives at once
        profiled.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    counts = {said: sum(str(event["name"]).startswith(name) for event in events) for name, said in COUNTED.items()}
    if options.profile:
        with cProfile.Profile() as profiled_python, torch.autograd.set_multithreading_enabled(False):
            step(WARM_STEPS + STEPS + 1)
        if ranks.main or ranks.count == 1:
            pstats.Stats(profiled_python).sort_stats("tottime").print_stats(options.profile)
    return {
        "strategy": ranks.strategy,
        "gather": gather,
        "milliseconds": {name: 1e3 * statistics.median(each[name] for each in seconds) for name in parts},
        "calls": counts,
    }


def prepared(
    options: argparse.Namespace, ranks: Ranks, gather: str
) -> tuple[Callable[[int], dict[str, float]], tuple[str, ...]]:
    """A function that makes a step and returns the seconds of its parts, and the names of these."""
    device, gpu = ranks.device, ranks.device.type == "cuda"
    torch.manual_seed(0)
    with device:
        shape = network_config(options.network, 32, 4, 1000) if options.network else SMALL
        flow = FlowMap(build_network(shape) if options.network else DiT(shape))
    objective = TerminalVelocityMatching(flow)
    averages = EvaluationEma(flow, (0.99, 0.999))
    prepare_objective(objective, torch.bfloat16 if gpu else None, gpu, "none", sharded=ranks.strategy == "fsdp")
    module = distribute(objective, averages.flows.values(), ranks, gather)
    weights = list(objective.trained().values())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    gradient = StepGradient(module, objective, optimizer, capture=False)
    x0 = torch.randn(options.batch, *flow.network.data_shape, device=device)
    label = torch.zeros(options.batch, dtype=torch.int64, device=device)
    part = Part(ranks.rank * options.batch, options.batch, ranks.count * options.batch)
    clock = time.perf_counter if gpu else time.process_time

    def step(number: int) -> dict[str, float]:
        marks = [clock()]
        objective.seed(number)
        loss = module(x0, label, part).loss
        marks.append(clock())
        loss.backward()
        release(module)
        marks.append(clock())
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        marks.append(clock())
        optimizer.step()
        gradient.clear()
        marks.append(clock())
        move_towards([*averages.at(number), (objective.target, 0.99)], flow)
        marks.append(clock())
        if gpu:
            torch.cuda.synchronize()
        return {name: end - begin for name, begin, end in zip(PARTS, marks, marks[1:], strict=False)}

    return step, PARTS


PARTS = ("forward", "backward", "clipping", "optimiser", "averages")


def describe(row: dict[str, Any]) -> str:
    times = row["milliseconds"]
    named = " ".join(f"{name} {value:.0f}" for name, value in times.items())
    calls = ", ".join(f"{value} {name}" for name, value in row["calls"].items() if value)
    way = row["strategy"] + (f" {row['gather']}" if row["strategy"] == "fsdp" else "")
    return f"{way:>9}: {sum(times.values()):6.1f} ms of the host a step ({named})" + (f"; {calls}" if calls else "")


if __name__ == "__main__":
    main()
