#!/usr/bin/env python3
"""How long a user waits for the first training step: `tvmatch train` from its start, nothing compiled before.

    python benchmarks/first_step.py --json benchmarks/results/first_step_<gpu>.json      (a machine with a GPU)
    python benchmarks/first_step.py --tiny                                               (a CPU: does it run)

A process of its own for every start, as a user has it: DiT-XL/2 on latents of 4x32x32 (made here), TVM with guidance,
batch 64. The first start finds empty folders of compiled code, the second what the first has compiled. For each

    seconds_until_first_step   as the run writes it: data, network, the check of tangents, compilation, the step
    seconds_on_the_wall        until that figure is on the disk, Python's start and imports included

Then the run is killed: nobody needs its checkpoint of many gigabytes.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from data import latent_source
from train_step import empty_caches
from tvmatch import __version__

BAR = 60  # seconds
KEY = "seconds_until_first_step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a start is given up")
    parser.add_argument("--commit", default="", help="recorded in the file; default: what git says")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("no GPU here; use --tiny to see that it runs")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    network, batch, count = ("DiT-Digits/4", 16, 64) if options.tiny else ("DiT-XL/2", 64, 2000)
    result = {
        "device": "cpu" if options.tiny else torch.cuda.get_device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "tvmatch": __version__,
        "commit": options.commit or git.stdout.strip(),
        "network": network,
        "data": "latents 4x32x32",
        "objective": "terminal-velocity",
        "batch": batch,
        "bar": BAR,
        "rows": [],
    }
    print(f"{result['device']}, {result['cores']} cores, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tvmatch-first-step-") as scratch, empty_caches():
        data = Path(scratch) / "latents"
        latent_source(data, count)
        for found in ("nothing", "what the start before compiled"):
            run = Path(scratch) / found.split()[0]
            row = {"found_compiled": found} | start(run, data, network, batch, options.limit, options.tiny)
            result["rows"].append(row)
            print(
                f"found compiled: {found}: {row[KEY]:.1f} s, {row['seconds_on_the_wall']:.1f} s on the wall", flush=True
            )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def start(run: Path, data: Path, network: str, batch: int, limit: float, tiny: bool) -> dict[str, float]:
    """One start of `tvmatch train`, killed when it has written its first line of figures."""
    command = [sys.executable, "-m", "tvmatch", "train", "--run", run, "--data", data, "--network", network]
    command += ["--batch-size", batch, "--guidance", "1:2", "--steps", 100_000, "--log-every", 1, "--sample-every", 0]
    if tiny:
        command += ["--device", "cpu"]
    log = run.with_suffix(".log")
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen([str(word) for word in command], stdout=file, stderr=file, start_new_session=True)
    try:
        while (figure := first_figure(run / "metrics.jsonl")) is None:
            if process.poll() is not None or time.monotonic() - began > limit:
                raise SystemExit(f"no first step after {time.monotonic() - began:.0f} s:\n{log.read_text()}")
            time.sleep(0.05)
        return {KEY: round(figure, 2), "seconds_on_the_wall": round(time.monotonic() - began, 2)}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that compile
        process.wait()


def first_figure(metrics: Path) -> float | None:
    """The figure in the first whole line of a run's record; None while there is none."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return json.loads(lines[0])[KEY] if lines and lines[0].endswith("\n") else None


if __name__ == "__main__":
    main()
