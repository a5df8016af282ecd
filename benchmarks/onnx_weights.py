#!/usr/bin/env python3
"""What storing weights in fewer bits does to a model that is exported to ONNX, on the digits: bytes, error, quality.

    tvmatch train --run runs/first
    python benchmarks/onnx_weights.py runs/first --json benchmarks/results/onnx_weights_cpu.json     (a minute)

Samples in one call, of the same noise for all, on one thread. The table goes into docs/export.md as well, between its
markers; a test holds the page to the file.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from page_tables import with_tables
from tvmatch import __version__
from tvmatch.data.source import to_pictures
from tvmatch.integrations.onnx import export_onnx
from tvmatch.metrics.judge import DigitsJudge, digits_frechet
from tvmatch.provenance import commit
from tvmatch.sampling import sample, seeded_noise
from tvmatch.training.trained import TrainedRun, load_run

PAGE = Path(__file__).parents[1] / "docs" / "export.md"
KINDS, SAMPLES, TIMED = ("float32", "float16", "int8"), 2000, 200
Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]


def in_onnxruntime(file: Path, w: float) -> Draw:
    """One call of an exported model, from noise to pictures."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def draw(noise: np.ndarray, label: np.ndarray) -> np.ndarray:
        each = {name: np.full(len(noise), value, np.float32) for name, value in (("t", 1.0), ("s", 0.0), ("w", w))}
        return session.run(None, {"x": noise, "class": label, **each})[0]

    return draw


def row_of(draw: Draw, noise: np.ndarray, label: np.ndarray, judge: DigitsJudge) -> dict[str, float]:
    """Quality of all samples, and the median milliseconds of one."""
    pictures = to_pictures(torch.from_numpy(draw(noise, label))).numpy()
    spent = []
    for k in range(TIMED):
        began = time.perf_counter()
        draw(noise[k : k + 1], label[k : k + 1])
        spent.append(1e3 * (time.perf_counter() - began))
    accuracy = judge.class_accuracy(pictures, label)
    return {"class_accuracy": accuracy, "frechet": digits_frechet(pictures), "milliseconds": median(spent)}


def measure(trained: TrainedRun, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for PyTorch and one for each kind of stored weights."""
    judge = DigitsJudge()
    label = np.arange(SAMPLES) % 10
    noise = seeded_noise(0, range(SAMPLES), trained.flow.network.data_shape).numpy()

    def in_torch(noise: np.ndarray, label: np.ndarray) -> np.ndarray:
        return sample(trained.flow, torch.from_numpy(noise), torch.from_numpy(label), trained.w, 1).numpy()

    rows: list[dict[str, Any]] = [{"weights": "PyTorch", **row_of(in_torch, noise, label, judge)}]
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            say(f"exporting with {kind} weights")
            file = Path(folder) / f"{kind}.onnx"
            report = export_onnx(trained, file, kind)
            drawn = row_of(in_onnxruntime(file, trained.w), noise, label, judge)
            rows.append({"weights": kind, "bytes": report.size, "error": report.error, **drawn})
    return rows


def table(result: dict[str, Any]) -> str:
    lines = [
        "| weights | bytes | relative error | read as the class asked for | Frechet distance (pixels) | ms, batch 1 |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        stored = [f"{row['bytes']:,}", f"{row['error']:.1e}"] if "bytes" in row else ["", ""]
        drawn = [f"{row['class_accuracy']:.4f}", f"{row['frechet']:.4f}", f"{row['milliseconds']:.1f}"]
        lines.append(f"| {' | '.join([row['weights'], *stored, *drawn])} |")
    return "\n".join(lines)


def filled(text: str, result: dict[str, Any]) -> str:
    """The page with the table between its markers."""
    return with_tables(PAGE.name, text, {"onnx weights": table(result)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of the digits")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained = load_run(options.run)
    result = {
        "tvmatch": __version__,
        "torch": torch.__version__,
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "parameters": sum(parameter.numel() for parameter in trained.flow.parameters()),
        "step": trained.step,
        "w": trained.w,
        "samples": SAMPLES,
        "rows": measure(trained, lambda text: print(text, flush=True)),
    }
    print(table(result))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(filled(PAGE.read_text(), result))


if __name__ == "__main__":
    main()
