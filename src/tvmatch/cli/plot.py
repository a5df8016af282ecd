"""`tvmatch plot RUN`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from tvmatch.cli.options import check_out, parse


@dataclass(frozen=True)
class PlotOptions:
    """What to draw."""

    run: tyro.conf.Positional[Path]  # folder of a run, finished or not
    out: Path | None = None  # a .png (default: RUN/instruments.png)


def command(arguments: list[str]) -> int:
    """Draw the instruments of a run as one picture."""
    options = parse(
        PlotOptions,
        "plot",
        "Draw losses, norms, attention logits and skipped steps of a run as one picture.",
        arguments,
    )
    from tvmatch.training.instrument_plot import draw_instruments

    out = options.out or options.run / "instruments.png"
    check_out(out, (".png",))
    draw_instruments(options.run, out)
    print(out)
    return 0
