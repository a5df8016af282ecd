#!/usr/bin/env python3
"""Two runs to tell apart: a loss that grows while samples get better, and one that diverges (docs/stability.md).

    python runs/stability.py [--out runs/stability] [--steps 300] [--only benign]

benign     the digits with a small DiT and the learning rate 4e-3
diverging  the same without the norms of queries, keys and modulation, at the learning rate 0.3, without clipping

Writes OUT/benign and OUT/diverging, a picture of each in docs/images (as `tvmatch plot` draws it), and
benchmarks/results/stability_cpu.json: figures of every 50 steps, and the Frechet distance in pixels of 1000 samples in
one call. docs/stability.md tells of 300 steps; with another number pictures and figures are written into OUT.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from tvmatch.data.source import to_pictures
from tvmatch.metrics.judge import digits_frechet
from tvmatch.networks import presets
from tvmatch.sampling import draw
from tvmatch.training import loop
from tvmatch.training.config import TrainConfig
from tvmatch.training.instrument_plot import draw_instruments, read_metrics
from tvmatch.training.trained import load_run

NETWORK = "DiT-Small/4"
EVERY = 50  # steps between samples
STEPS = 300  # of the runs that docs/stability.md shows
IMAGES = Path(__file__).parents[1] / "docs/images"
RESULTS = Path(__file__).parents[1] / "benchmarks/results/stability_cpu.json"
RUNS: dict[str, dict[str, Any]] = {
    "benign": {"learning_rate": 4e-3},
    # attention logits and modulation that nothing bounds
    "diverging": {"learning_rate": 0.3, "clip_gradient": float("inf"), "qk_norm": False, "modulation_norm": False},
}


def run(name: str, folder: Path, steps: int) -> list[dict[str, float]]:
    """Train in parts (the bits are those of one run) and sample after each."""
    presets.NETWORKS[NETWORK] = (presets.Size(hidden_size=64, depth=2, num_heads=2), 4)
    config = TrainConfig(
        run=folder,
        network=NETWORK,
        batch_size=64,
        evaluation_ema=(0.99,),
        log_every=10,
        sample_every=0,
        checkpoint_every=10**6,
        keep_checkpoints=1,
        device="cpu",
        **RUNS[name],
    )
    rows: list[dict[str, float]] = []
    for step in range(EVERY, steps + 1, EVERY):
        try:
            result = loop.train(dataclasses.replace(config, steps=step))
        except loop.TrainingError as error:
            print(error)
            break
        if result.signal is not None:
            raise SystemExit(128 + result.signal)
        lines = [line for line in read_metrics(folder) if line["step"] > step - EVERY]
        trained = load_run(folder)
        row: dict[str, float] = {"step": step}
        for figure in ("loss", "terminal", "boundary", "gradient_norm", "output_rms", "slope_rms", "skipped_share"):
            values = [line[figure] for line in lines if figure in line]
            row |= {figure: sum(values) / len(values)} if values else {}
        row["largest_attention_logit"] = max(line.get("largest_attention_logit", 0.0) for line in lines)
        x = draw(trained.flow, torch.arange(1000) % 10, trained.w, 1)
        row |= {"frechet": digits_frechet(to_pictures(x).numpy())} if bool(x.isfinite().all()) else {}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/stability"))
    parser.add_argument("--steps", type=int, default=STEPS, help=f"a multiple of {EVERY}")
    parser.add_argument("--only", choices=RUNS, help="one of the two runs; the results of the other are kept")
    options = parser.parse_args()
    if options.steps < 1 or options.steps % EVERY:
        parser.error(f"--steps {options.steps}: samples are drawn every {EVERY} steps; give a multiple of {EVERY}.")
    shown = options.steps == STEPS
    images, path = (IMAGES, RESULTS) if shown else (options.out, options.out / RESULTS.name)
    for name in RUNS if options.only is None else [options.only]:
        began = time.perf_counter()
        rows = run(name, options.out / name, options.steps)
        draw_instruments(options.out / name, images / f"stability_{name}.png")
        results = json.loads(path.read_text()) if path.exists() else {}
        results["torch"] = torch.__version__
        results[name] = {"options": RUNS[name], "seconds": round(time.perf_counter() - began), "rows": rows}
        results[name]["options"] = {key: str(value) for key, value in RUNS[name].items()}
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
