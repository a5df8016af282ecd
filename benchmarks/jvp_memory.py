#!/usr/bin/env python3
"""Peak memory of a training step through the JVP against a plain one, on the CPU with the reference attention.

    python benchmarks/jvp_memory.py [--network DiT-S/2] [--batch 16] [--json benchmarks/results/jvp_memory_cpu.json]

plain: F(x, t, s) and its backward. jvp: F and dF/ds and the backward through both (`FlowMap.terminal_velocity`).
Each runs in a process of its own. The peak is what the operating system counted (VmHWM); `step` is the peak above what
the process held, weights included, before its first step. The C library is told to give freed tensors back at once
(MALLOC_MMAP_THRESHOLD_), so that the peak is that of live tensors; `default_malloc` is the same without that, where the
peak also counts what the heap keeps of them. The bar (issue 2): a ratio of at most 2.2.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tvmatch import __version__
from tvmatch.flow_map import FlowMap
from tvmatch.networks.presets import build_network, network_config

BAR = 2.2


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
    x, label, w = torch.randn(batch, 4, 32, 32), torch.zeros(batch, dtype=torch.int64), torch.ones(batch)
    t, s = torch.full((batch,), 0.8), torch.full((batch,), 0.3)
    for parameter in flow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = memory("VmRSS")
    if mode == "jvp":
        loss = flow.terminal_velocity(x, t, s, label, w)[1].square().mean()
    else:
        loss = flow.displacement(x, t, s, label, w).square().mean()
    loss.backward()
    return {"before_mib": before, "peak_mib": memory("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="DiT-S/2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", choices=("plain", "jvp"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options.mode, options.network, options.batch)))
        return
    result = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "tvmatch": __version__,
        "network": options.network,
        "batch": options.batch,
        "bar": BAR,
        "live_tensors": compare(options, {"MALLOC_MMAP_THRESHOLD_": "65536"}),
        "default_malloc": compare(options, {}),
    }
    for name in ("live_tensors", "default_malloc"):
        rows = result[name]
        for mode in ("plain", "jvp"):
            print(
                f"{name:>15} {mode:>6}: peak {rows[mode]['peak_mib']:.0f} MiB, "
                f"the step {rows[mode]['step_mib']:.0f} MiB"
            )
        print(
            f"{name:>15}  ratio: of the peaks {rows['ratio_peak']:.2f}, "
            f"of the steps {rows['ratio_step']:.2f}; bar {BAR}"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Both modes, each in a process with `environment` added, and the ratios of their peaks."""
    rows: dict[str, Any] = {}
    for mode in ("plain", "jvp"):
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
    for what in ("peak", "step"):
        rows[f"ratio_{what}"] = rows["jvp"][f"{what}_mib"] / rows["plain"][f"{what}_mib"]
    return rows


if __name__ == "__main__":
    main()
