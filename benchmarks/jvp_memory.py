#!/usr/bin/env python3
"""What a training step through the JVP costs in memory and CPU time, beside one that sends no gradient back through
it and beside a plain one: on the CPU, with the reference attention.

    python benchmarks/jvp_memory.py [--network DiT-S/2] [--batch 16] [--json benchmarks/results/jvp_memory_cpu.json]

plain: F(x, t, s) and its backward. detached: the same, and dF/ds in a forward pass of its own without gradient, as
MeanFlow has it. jvp: F and dF/ds and the backward through both (`FlowMap.terminal_velocity`).

Each runs in a process of its own, after a step of one sample, with which PyTorch loads what it needs. The peak is what
the operating system counted (VmHWM); `step` is the peak above what the process held, weights included, before the step.
`cpu_seconds` are those of all threads. The C library is told to give freed tensors back at once
(MALLOC_MMAP_THRESHOLD_), so that the peak is that of live tensors; `default_malloc` is the same without that, where the
peak also counts what the heap keeps of them. The bar (issue 2): jvp takes at most 2.2 times what plain does.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kept_rows import machine
from tvmatch import __version__
from tvmatch.flow_map import FlowMap
from tvmatch.interpolant import per_sample
from tvmatch.networks.base import Tangents
from tvmatch.networks.presets import build_network, network_config
from tvmatch.provenance import commit

BAR = 2.2
MODES = ("plain", "detached", "jvp")


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at the peak (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(mode: str, network: str, batch: int) -> dict[str, float]:
    """One step of `mode` in this process: MiB held before it, and at its peak."""
    torch.manual_seed(0)
    flow = FlowMap(build_network(network_config(network, 32, 4, 1000)))
    for parameter in flow.parameters():  # a fresh network's zeros would make the derivative zero
        torch.nn.init.normal_(parameter, std=0.02)
    for parameter in flow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step(mode, flow, 1)
    before, began = memory("VmRSS"), time.process_time()
    step(mode, flow, batch)
    return {"before_mib": before, "peak_mib": memory("VmHWM"), "cpu_seconds": time.process_time() - began}


def step(mode: str, flow: FlowMap, batch: int) -> None:
    """One loss and its gradient."""
    x, label, w = torch.randn(batch, 4, 32, 32), torch.zeros(batch, dtype=torch.int64), torch.ones(batch)
    t, s = torch.full((batch,), 0.8), torch.full((batch,), 0.3)
    if mode == "jvp":
        error = flow.terminal_velocity(x, t, s, label, w)[1]
    elif mode == "detached":
        with torch.no_grad():
            slope = flow.network_derivative(x, t, s, label, w, Tangents(s=torch.ones_like(s)))[1]
        error = flow.average_velocity(x, t, s, label, w) + per_sample(s - t, x) * slope
    else:
        error = flow.average_velocity(x, t, s, label, w)
    error.square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-S/2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options.mode, options.network, options.batch)))
        return
    result = {
        "machine": machine(),
        "commit": commit(),
        "tvmatch": __version__,
        "network": options.network,
        "batch": options.batch,
        "bar": BAR,
        "live_tensors": compare(options, {"MALLOC_MMAP_THRESHOLD_": "65536"}),
        "default_malloc": compare(options, {}),
    }
    for name in ("live_tensors", "default_malloc"):
        for mode, row in result[name].items():
            print(
                f"{name:>15} {mode:>8}: peak {row['peak_mib']:.0f} MiB, {row['peak_over_plain']:.2f} times plain; the "
                f"step {row['step_mib']:.0f} MiB, {row['step_over_plain']:.2f}; {row['cpu_seconds']:.1f} s, "
                f"{row['seconds_over_plain']:.2f}"
            )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """All modes, each in a process with `environment` added, and what each takes over the plain one."""
    rows: dict[str, Any] = {}
    for mode in MODES:
        command = [
            sys.executable,
            __file__,
            "--mode",
            mode,
            "--network",
            options.network,
            "--batch",
            str(options.batch),
        ]
        run = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
        rows[mode] = json.loads(run.stdout)
        rows[mode]["step_mib"] = rows[mode]["peak_mib"] - rows[mode]["before_mib"]
    for row in rows.values():
        for name, field in (("peak", "peak_mib"), ("step", "step_mib"), ("seconds", "cpu_seconds")):
            row[f"{name}_over_plain"] = row[field] / rows["plain"][field]
    return rows


if __name__ == "__main__":
    main()
