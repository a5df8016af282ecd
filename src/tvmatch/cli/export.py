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
    to: Literal["safetensors"] = "safetensors"  # one plain file of averaged weights, which `tvmatch sample` reads
    out: Path | None = None  # the file (default: RUN/weights.safetensors)
    ema: float | None = None  # which averaged weights, by decay (default: all)


def command(arguments: list[str]) -> int:
    """Write the file and print its name."""
    options = parse(ExportOptions, "export", "Take a trained run's weights elsewhere.", arguments)
    from tvmatch.training.export import export_weights

    out = options.out or options.run / "weights.safetensors"
    check_out(out, (".safetensors",))
    export_weights(options.run, out, options.ema)
    print(out)
    return 0
