#!/usr/bin/env python3
"""Training steps of the sizes that matter: images/s, memory, utilisation, seconds to compile.

    python benchmarks/train_step.py --json benchmarks/results/train_step_<gpu>.json      (an H200 or H100)
    python benchmarks/train_step.py --tiny                                               (a CPU: does it run)
    torchrun --nproc-per-node 2 benchmarks/train_step.py --cases 0 --strategy single ddp fsdp --graphs on --json ...
                                                                                                          (two GPUs)

One row a case, in one run on one device; the matrix rate that `mfu` refers to is measured in the same run, and "first
step" is the first training step alone. With --cold it compiles into empty folders, and the rows say `cold`: true of the
first, false of those after it, which find some of their code there. Without, nobody knows what the first finds.

Over several GPUs a case's batch is that of each; `single` is one of them alone, while the others wait.
benchmarks/train_step_tables.py writes the H200's file into docs/.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch

from tvmatch import __version__
from tvmatch.training.bench import StepCase, matmul_tflops, measure_step
from tvmatch.training.config import FsdpGather, Graphs
from tvmatch.training.ranks import Ranks, join_ranks

XL = {"network": "DiT-XL/2", "image_size": 32, "channels": 4}
CASES = [
    StepCase(**XL, batch=64),
    StepCase(**XL, batch=64, objective="flow-matching", guidance="1"),
    StepCase("DiT-S/4", 32, 3, 1024, classes=10),
    StepCase(**XL, batch=64, recompute="full"),
    StepCase(**XL, batch=64, recompute="selective"),
    StepCase("DiT-XL/2", 64, 4, 16, recompute="selective"),
    StepCase(**XL, batch=128, recompute="selective"),
    StepCase(**XL, batch=64, terminal_every=2),
    StepCase(**XL, batch=64, objective="flow-matching"),
    StepCase("DiT-S/4", 32, 3, 1024, classes=10, terminal_every=2),
    StepCase("DiT-S/4", 32, 3, 1024, classes=10, terminal_every=4),
    StepCase(**XL, batch=64, optimizer="muon"),
    StepCase("DiT-S/2", 32, 3, 512, classes=10, terminal_every=4),
    StepCase("DiT-S/2", 32, 3, 512, classes=10, terminal_every=4, optimizer="muon"),
]
TINY = [
    StepCase("DiT-Digits/4", 8, 1, 16, objective=objective, recompute=recompute, classes=10)
    for objective in ("terminal-velocity", "flow-matching")
    for recompute in ("none", "selective", "full")
] + [StepCase("DiT-Digits/4", 8, 1, 16, classes=10, terminal_every=4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cases", type=int, nargs="*", help="only these rows of CASES, counted from 0, in this order")
    parser.add_argument("--commit", default="", help="recorded in the file; default: what git says")
    parser.add_argument("--strategy", nargs="+", choices=("single", "ddp", "fsdp"), default=["single"])
    parser.add_argument("--graphs", choices=get_args(Graphs), default="auto", help="record the step (auto: of one GPU)")
    parser.add_argument("--cold", action="store_true", help="compile into empty folders: the first row's first step")
    parser.add_argument("--fsdp-gather", choices=get_args(FsdpGather), default="auto")
    options = parser.parse_args()
    several = set(options.strategy) - {"single"}
    with contextlib.ExitStack() as stack:
        if options.cold:
            stack.enter_context(empty_caches())
        ranks = stack.enter_context(join_ranks("ddp" if several else "single", "auto"))
        measure(options, ranks)


@contextlib.contextmanager
def empty_caches() -> Iterator[None]:
    """What PyTorch's compiler and Triton write goes into new folders of this process, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="tvmatch-cold-") as folder:
        folders = {name: str(Path(folder) / name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        before = {name: os.environ.get(name) for name in folders}
        os.environ.update(folders)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def measure(options: argparse.Namespace, ranks: Ranks) -> None:
    """Every case with every strategy; rank 0 prints and writes."""
    device = ranks.device
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("no GPU here; use --tiny to see that it runs")
    matmul = ranks.on_main(lambda: matmul_tflops(device))
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "tvmatch": __version__,
        "commit": options.commit or git.stdout.strip(),
        "matmul_tflops": matmul,
        "rows": [],
    }
    say = print if ranks.main else lambda *_, **__: None
    say(f"{result['device']}, torch {torch.__version__}, matmul {matmul:.0f} TFLOP/s", flush=True)
    cases, steps = TINY if options.tiny else CASES, 3 if options.tiny else 10
    for case in cases if options.cases is None else [cases[number] for number in options.cases]:
        case = dataclasses.replace(case, graphs=options.graphs, fsdp_gather=options.fsdp_gather)
        alone = None
        for strategy in options.strategy:
            try:
                row = measure_with(strategy, case, ranks, matmul, steps)
            except Exception as error:  # one case that fails must not lose the others
                if strategy != "single":  # the other ranks would wait for this one: let the launcher end them
                    raise
                traceback.print_exc()
                result["rows"].append({"network": case.network, "policy": case.recompute, "error": repr(error)})
                continue
            row |= {"commit": result["commit"], "matmul_tflops": round(matmul, 1)}
            if options.cold or result["rows"]:
                row["cold"] = not result["rows"]
            result["rows"].append(row)
            if strategy == "single":
                alone = row["images_per_second"]
            memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:6.1f} GiB"
            times = f", {row['images_per_second'] / alone:.2f} times one" if alone and strategy != "single" else ""
            say(
                f"{row['network']:>12} {row['data']:>8} {row['objective']:>17}{every(row)} batch {row['batch']:<4} "
                f"{row['policy']:>9} {way(row)} x {row['ranks']}: {row['images_per_second']:8.1f} img/s "
                f"{row['milliseconds']:7.1f} ms {memory} mfu {row['mfu']:.2f} first step {row['compile_seconds']:.0f} s"
                + times,
                flush=True,
            )
            if options.json and ranks.main:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(result, indent=1) + "\n")


def every(row: dict) -> str:
    """What share of a batch jumps, where it is not all of it."""
    return f" (jumps 1/{row['terminal_every']})" if row["terminal_every"] > 1 else ""


def way(row: dict) -> str:
    """The strategy of a row, with what was set for it."""
    gather = f" gathered each {row['fsdp_gather']}".replace("auto", "step") if row["fsdp_gather"] else ""
    return f"{row['strategy']}{gather}{', recorded,' if row['graph'] else ''}"


def measure_with(strategy: str, case: StepCase, ranks: Ranks, matmul: float, steps: int) -> dict:
    """One row; `single` is measured on rank 0 alone."""
    if strategy == "single":
        return ranks.on_main(lambda: measure_step(case, Ranks(ranks.device), matmul, steps))
    return measure_step(case, dataclasses.replace(ranks, strategy=strategy), matmul, steps)


if __name__ == "__main__":
    main()
