#!/usr/bin/env python3
"""Handwritten digits in one network call: Terminal Velocity Matching beside flow matching (`make demo`).

    python runs/digits.py [--out runs] [--steps 500]

Trains both objectives with the same network, data, seed and number of steps, and writes

    OUT/digits/samples.png    rows: classes; blocks: 1, 2, 4 calls, flow matching with 1, 4, 32 Euler steps, real data
    OUT/digits/report.json    share of samples read as the class asked for, Frechet distance in pixels, cost

Expected on 2 cores, 500 steps: class accuracy at least 0.90 in one call and 0.95 in four; a Frechet distance in one
call at most that of flow matching in four Euler steps. The run folders are OUT/digits and OUT/digits-flow-matching;
what is already trained is not trained again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from tvmatch.data.digits import digits_source
from tvmatch.data.source import to_pictures
from tvmatch.metrics.judge import DigitsJudge, digits_frechet
from tvmatch.pictures import captioned, enlarge, save_png, tile
from tvmatch.sampling import draw
from tvmatch.training.checkpoint import list_checkpoints, step_of
from tvmatch.training.config import TrainConfig
from tvmatch.training.loop import train
from tvmatch.training.trained import TrainedRun, load_run

SAMPLES = 2000  # for each figure
COLUMNS = 5  # pictures of each class in each block
TVM_CALLS, EULER_STEPS = (1, 2, 4), (1, 4, 32)


def trained(config: TrainConfig) -> tuple[TrainedRun, float | None]:
    """The run of `config`, trained now unless it is complete; images/s if it was."""
    done = [step_of(path) for path in list_checkpoints(config.run)]
    if done and done[-1] >= config.steps:
        print(f"{config.run}: already trained, {done[-1]} steps")
        return load_run(config.run), None
    result = train(config)
    if result.signal is not None:
        raise SystemExit(128 + result.signal)
    return load_run(config.run), result.images_per_second


def figures(pictures: np.ndarray, label: np.ndarray, judge: DigitsJudge) -> dict[str, float]:
    """What report.json says of pictures uint8 [N, 8, 8, 1]."""
    return {"class_accuracy": judge.class_accuracy(pictures, label), "frechet": digits_frechet(pictures)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    began = time.perf_counter()

    config = {"steps": options.steps, "sample_every": 100}
    tvm, speed = trained(TrainConfig(run=options.out / "digits", **config))
    baseline, _ = trained(TrainConfig(run=options.out / "digits-flow-matching", objective="flow-matching", **config))

    judge, held_out = DigitsJudge(), digits_source("held_out")
    real = held_out.batch(np.arange(len(held_out)))
    report: dict = {"tvm": {}, "flow_matching": {}, "real": figures(real, held_out.labels, judge)}
    label = torch.arange(SAMPLES) % 10
    rows = label[: 10 * COLUMNS].reshape(COLUMNS, 10).T.reshape(-1)  # class by class, for the picture
    blocks = []
    for run, name, counts in ((tvm, "tvm", TVM_CALLS), (baseline, "flow_matching", EULER_STEPS)):
        for steps in counts:
            pictures = to_pictures(draw(run.flow, label, run.w, steps, method=run.method)).numpy()
            report[name][str(steps)] = figures(pictures, label.numpy(), judge)
            shown = pictures[: len(rows)].reshape(COLUMNS, 10, 8, 8, 1).swapaxes(0, 1).reshape(-1, 8, 8, 1)
            what = "TVM" if name == "tvm" else "flow matching"
            unit = ("call" if name == "tvm" else "Euler step") + ("s" if steps > 1 else "")
            blocks.append((f"{what}\n{steps} {unit}", enlarge(tile(shown, COLUMNS), 32, 8)))
    examples = np.concatenate([np.flatnonzero(held_out.labels == digit)[:COLUMNS] for digit in range(10)])
    blocks.append(("real\n(held out)", enlarge(tile(held_out.batch(examples), COLUMNS), 32, 8)))
    save_png(captioned(blocks, [str(digit) for digit in range(10)]), options.out / "digits" / "samples.png")

    report["seconds"] = round(time.perf_counter() - began, 1)
    report["images_per_second"] = speed
    path = options.out / "digits" / "report.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    for name in ("tvm", "flow_matching"):
        for steps, values in report[name].items():
            print(f"{name:>14} {steps:>3}  accuracy {values['class_accuracy']:.3f}  frechet {values['frechet']:.3f}")
    print(f"{'real':>14}      accuracy {report['real']['class_accuracy']:.3f}  frechet {report['real']['frechet']:.3f}")
    print(f"{options.out / 'digits' / 'samples.png'} and {path}, {report['seconds']:.0f} s")


if __name__ == "__main__":
    main()
