"""`tvmatch export RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tvmatch.cli.options import check_out, parse


@dataclass(frozen=True)
class ExportOptions:
    """What to write."""

    run: tyro.conf.Positional[Path]  # folder of a trained run
    # safetensors: one plain file of averaged weights, which `tvmatch sample` reads; onnx: the step of the sampler
    to: Literal["safetensors", "onnx"] = "safetensors"
    out: Path | None = None  # the file (default: RUN/weights.safetensors or RUN/model.onnx)
    ema: float | None = None  # which averaged weights, by decay (default: all; for onnx the slowest)
    weights: Literal["float32", "float16", "int8"] | None = None  # onnx: how they are stored (default: float32)


def command(arguments: list[str]) -> int:
    """Write the file and print its name."""
    options = parse(ExportOptions, "export", "Take a trained run's weights elsewhere.", arguments)
    if options.to == "onnx":
        return _onnx(options)
    from tvmatch.training.export import export_weights

    if options.weights is not None:
        raise ValueError(f"--weights {options.weights} belongs to --to onnx; leave it out.")
    out = options.out or options.run / "weights.safetensors"
    check_out(out, (".safetensors",))
    export_weights(options.run, out, options.ema)
    print(out)
    return 0


def _onnx(options: ExportOptions) -> int:
    from tvmatch.integrations.onnx import export_onnx
    from tvmatch.training.trained import load_run

    out = options.out or options.run / "model.onnx"
    check_out(out, (".onnx",))
    weights = options.weights or "float32"
    report = export_onnx(load_run(options.run, options.ema), out, weights)
    print(out)
    print(f"{report.size:,} bytes ({weights} weights); differs from PyTorch by {report.error:.1e}, relative")
    return 0
