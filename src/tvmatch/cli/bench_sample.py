"""`tvmatch bench sample`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tvmatch.cli.options import check_out, check_place, check_replaced, parse, refuse_ranks

DESCRIPTION = """Measure sampling with random weights: images a second and milliseconds a batch, launched (eager), with
compiled blocks, and those recorded as a CUDA graph."""


@dataclass(frozen=True)
class BenchSampleOptions:
    """What to measure."""

    network: str = "DiT-XL/2"  # see `tvmatch presets`
    image_size: Annotated[int, tyro.conf.arg(name="image-size")] = 32  # pixels (or latent cells) a side
    channels: int = 4
    classes: int = 1000
    batch_size: Annotated[tuple[int, ...], tyro.conf.arg(name="batch-size")] = (1, 64, 256)
    nfe: int = 1  # network calls a picture
    w: float | None = None  # guidance scale (default: 2, or 1 without classes)
    modes: tuple[Literal["eager", "compiled", "graph"], ...] = ()  # default: what the device can do
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the blocks (auto: bfloat16 on a GPU)
    commit: str = ""  # what the JSON names (default: asked of git)
    device: str = "auto"
    out: Path | None = None  # write the rows to this JSON file


def command(arguments: list[str]) -> int:
    """Measure, print a line a row, write JSON."""
    options = parse(BenchSampleOptions, "bench sample", DESCRIPTION, arguments)
    refuse_ranks("one process measures")
    if len(set(options.batch_size)) != len(options.batch_size):
        raise ValueError(f"batch-size must be given without repetition, got {list(options.batch_size)}.")
    if not options.batch_size or min(options.batch_size) < 1 or options.nfe < 1:
        raise ValueError(f"batch-size and nfe must be at least 1, got {list(options.batch_size)} and {options.nfe}.")
    if options.out is not None:
        check_out(options.out, (".json",))
        check_place(options.out)
        check_replaced(options.out, ("device", "rows"), others=("checkpoint", "matmul_tflops"))
    import torch

    from tvmatch import __version__
    from tvmatch.devices import choose_device
    from tvmatch.files import write_text
    from tvmatch.guidance import check_scale
    from tvmatch.provenance import commit
    from tvmatch.sampling_speed import MODES, SamplingCase, measure_sampling

    w = (2.0 if options.classes else 1.0) if options.w is None else options.w
    check_scale(w, "inverse", options.classes)
    device = choose_device(options.device)
    possible = MODES if device.type == "cuda" else ("eager",)
    modes = options.modes or possible
    if device.type != "cuda" and "graph" in modes:
        raise ValueError(f"--modes {' '.join(modes)}: a recorded sampler needs a GPU, and this is {device.type}.")
    case = SamplingCase(
        options.network,
        options.image_size,
        options.channels,
        options.classes,
        options.nfe,
        w,
        options.precision,
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    told = {"device": name, "torch": torch.__version__, "tvmatch": __version__, "python": sys.version.split()[0]}
    told |= {"commit": options.commit or commit(), "rows": []}
    for row in measure_sampling(case, options.batch_size, modes, device):
        print(
            f"{row['mode']:>9}, batch {row['batch']:>4}, nfe {row['nfe']}: {row['images_per_second']:.1f} images/s, "
            f"{row['milliseconds']:.2f} ms a batch (90%: {row['milliseconds_90']:.2f}), first call "
            f"{row['first_call_seconds']:.1f} s",
            flush=True,
        )
        told["rows"].append(row)
        if options.out is not None:  # after every row: a mode that fails costs only its own
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(options.out, json.dumps(told, indent=1) + "\n")
    return 0
