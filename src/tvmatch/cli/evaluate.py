"""`tvmatch evaluate RUN`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from tvmatch.cli.options import check_out, check_seed, parse, warn


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure."""

    run: tyro.conf.Positional[Path]  # folder of a trained run
    nfe: tuple[int, ...] = (1, 2, 4)  # network calls a picture
    w: tuple[float, ...] = ()  # guidance scales (default: the one trained for)
    samples: int = 2000  # pictures for each figure, spread evenly over the classes
    method: Literal["jump", "euler"] | None = None  # default: euler for flow matching, jump otherwise
    seed: int = 0
    ema: float | None = None  # which averaged weights, by decay (default: the slowest)
    out: Path | None = None  # JSON with the figures (default: RUN/evaluation.json)
    device: str = "auto"


def command(arguments: list[str]) -> int:
    """Measure, print a table, write JSON."""
    options = parse(
        EvaluateOptions, "evaluate", "Measure the samples of a trained run against its training data.", arguments
    )
    from tvmatch.files import write_text
    from tvmatch.metrics.report import evaluate_run
    from tvmatch.training.ranks import choose_device
    from tvmatch.training.trained import load_run

    check_seed(options.seed)
    out = options.out or options.run / "evaluation.json"
    check_out(out, (".json",))
    trained = load_run(options.run, options.ema, choose_device(options.device))
    for w in options.w:
        warn("evaluate", trained.check_w(w))
    rows = evaluate_run(
        options.run, trained, options.nfe, options.w or (trained.w,), options.samples, options.seed, options.method
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps({"checkpoint": str(trained.checkpoint), "ema": trained.ema, "rows": rows}, indent=1))
    # a line of its own: a title is wrapped to the width of the table
    print(f"{options.run}, step {trained.step}, {options.samples} samples")
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    print(out)
    return 0
