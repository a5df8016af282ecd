#!/usr/bin/env python3
"""Peak memory of a training step through the JVP against a plain one, on the CPU with the reference attention.

    python benchmarks/jvp_memory.py [--network DiT-S/2] [--batch 16] [--json benchmarks/results/jvp_memory_cpu.json]

plain: F(x, t, s) and its backward. jvp: F and dF/ds and the backward through both (`FlowMap.terminal_velocity`).
Each runs in a process of its own. The peak is what the operating system counted (VmHWM); `step` is the peak above what
the process held, weights included, before its first step. The bar (issue 2): a ratio of at most 2.2.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

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
    rows = {}
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
        rows[mode] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows[mode]["step_mib"] = rows[mode]["peak_mib"] - rows[mode]["before_mib"]
    result = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "tvmatch": __version__,
        "network": options.network,
        "batch": options.batch,
        **rows,
        "ratio_peak": rows["jvp"]["peak_mib"] / rows["plain"]["peak_mib"],
        "ratio_step": rows["jvp"]["step_mib"] / rows["plain"]["step_mib"],
        "bar": BAR,
    }
    for mode in ("plain", "jvp"):
        print(f"{mode:>6}: peak {rows[mode]['peak_mib']:.0f} MiB, of it the step {rows[mode]['step_mib']:.0f} MiB")
    print(f"ratio of the peaks {result['ratio_peak']:.2f}, of the steps alone {result['ratio_step']:.2f}; bar {BAR}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
