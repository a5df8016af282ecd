"""`tvmatch export RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tvmatch.cli.options import check_no_checkpoint, check_out, check_place, parse, warn

OWNERS = {"weights": "onnx", "license": "diffusers", "data_license": "diffusers", "codec": "diffusers"}


@dataclass(frozen=True)
class ExportOptions:
    """What to write."""

    run: tyro.conf.Positional[Path]  # folder of a trained run
    # safetensors: one plain file of averaged weights, which `tvmatch sample` reads; onnx: the step of the sampler;
    # diffusers: a folder that `TVMatchPipeline.from_pretrained` reads, with a model card
    to: Literal["safetensors", "onnx", "diffusers"] = "safetensors"
    out: Path | None = None  # file or new folder (default: RUN/weights.safetensors, RUN/model.onnx, RUN/diffusers)
    ema: float | None = None  # which averaged weights, by decay (default: all; for onnx and diffusers the slowest)
    weights: Literal["float32", "float16", "int8"] | None = None  # onnx: how they are stored (default: float32)
    license: str | None = None  # diffusers: of the weights, for the card, such as cc-by-4.0
    data_license: str | None = None  # diffusers: of the training data, for the card
    codec: str | None = None  # diffusers, a model of latents: where its codec lies now (default: as in training)


def command(arguments: list[str]) -> int:
    """Write the file or the folder and print its name."""
    options = parse(ExportOptions, "export", "Take a trained run's weights elsewhere.", arguments)
    for name, owner in OWNERS.items():
        value = getattr(options, name)
        if value is not None and options.to != owner:
            raise ValueError(f"--{name.replace('_', '-')} {value} belongs to --to {owner}; leave it out.")
    check_no_checkpoint(options.out)
    if options.to != "safetensors":
        return _onnx(options) if options.to == "onnx" else _diffusers(options)
    from tvmatch.training.export import check_replaceable, export_weights

    out = options.out or _beside(options.run) / "weights.safetensors"
    check_out(out, (".safetensors",))
    check_place(out)
    check_replaceable(out)
    export_weights(options.run, out, options.ema)
    print(out)
    return 0


def _beside(run: Path) -> Path:
    """The folder for what is made of a run: its own, or the one that a file of weights lies in."""
    return run.parent if run.is_file() else run


def _onnx(options: ExportOptions) -> int:
    from tvmatch.integrations.onnx import export_onnx
    from tvmatch.training.trained import load_run

    out = options.out or _beside(options.run) / "model.onnx"
    check_out(out, (".onnx",))
    check_place(out)
    weights = options.weights or "float32"
    report = export_onnx(load_run(options.run, options.ema), out, weights)
    print(out)
    print(f"{report.size:,} bytes ({weights} weights); differs from PyTorch by {report.error:.1e}, relative")
    return 0


def _diffusers(options: ExportOptions) -> int:
    try:
        from tvmatch.integrations.diffusers.card import facts_of
        from tvmatch.integrations.diffusers.export import export_diffusers
    except ImportError as error:
        raise ValueError(str(error)) from error
    from tvmatch.training.trained import load_run

    out = options.out or _beside(options.run) / "diffusers"
    if out.exists():
        raise ValueError(f"--out {out} exists; give the name of a new folder.")
    check_place(out)
    trained = load_run(options.run, options.ema)
    trained.check_codec(options.codec)
    facts = facts_of(options.run, trained, options.license, options.data_license)
    report = export_diffusers(trained, out, facts, options.codec)
    print(out)
    print(f"{report.size:,} bytes; loaded again to the same bits; samples differ by {report.error:.1e}, relative")
    if not facts.figures:
        warn("export", f"the card has no figures: run `tvmatch evaluate {options.run}` first, then export again.")
    missing = [name for name in ("license", "data_license") if getattr(options, name) is None]
    if missing:
        asked = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        warn("export", f"the card says of a licence that it is not stated; give {asked} to state it.")
    return 0
