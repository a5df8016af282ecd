"""`tvmatch evaluate RUN`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from tvmatch.cli.options import check_out, check_place, check_replaced, check_seed, parse, refuse_ranks, warn

DESCRIPTION = """Measure the samples of a trained run against its training data.

With --features (a TorchScript network; Inception for FID): Frechet and kernel distance, precision, recall, density,
coverage, sliced W2, pictures, the trade-off of w and calls. Without: the Frechet distance of pixel values (of
latents), and for digits the share that is read right.

With --features, run again, it continues what was killed, and other calls, w and seeds join those that are there.
Several GPUs: torchrun --nproc-per-node 8 -m -- tvmatch evaluate ..."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure."""

    run: tyro.conf.Positional[Path]  # folder of a trained run
    nfe: tuple[int, ...] = (1, 2, 4)  # network calls a picture
    w: tuple[float, ...] = ()  # guidance scales (default: the one trained for)
    samples: int = 2000  # pictures for each figure, classes in turn: a multiple of their number has as many of each
    features: Path | None = None  # a TorchScript feature network: pictures [B, 3, size, size] to features [B, D]
    statistics: Path | None = None  # of `tvmatch statistics` (default: made from the run's own data, for Inception)
    seeds: tuple[int, ...] = (0,)  # of the noise; several give error bars (with --features)
    method: Literal["jump", "euler", "consistency"] | None = None  # default: what the objective teaches
    ema: float | None = None  # which averaged weights, by decay (default: the slowest)
    # JSON with the figures (default: evaluation.json in RUN, or beside the file); with --features a folder beside it
    out: Path | None = None
    batch_size: int = 500  # pictures at once (with --features)
    # of the blocks (with --features; auto: bfloat16 on a GPU)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    codec: str | None = None  # of a model of latents, if it has moved (with --features)
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one


def command(arguments: list[str]) -> int:
    """Measure, print a table, write JSON."""
    options = parse(EvaluateOptions, "evaluate", DESCRIPTION, arguments)
    for seed in options.seeds:
        check_seed(seed)
    out = options.out or (options.run.parent if options.run.is_file() else options.run) / "evaluation.json"
    check_out(out, (".json",))
    check_place(out)
    return _in_pixels(options, out) if options.features is None else _in_features(options, out)


def _in_features(options: EvaluateOptions, out: Path) -> int:
    from tvmatch.metrics.evaluation import EvaluationPlan, evaluate
    from tvmatch.metrics.features import FeatureNetwork, Preprocessing
    from tvmatch.metrics.kernel import require_torchmetrics
    from tvmatch.metrics.statistics import read_statistics
    from tvmatch.metrics.tradeoff import table
    from tvmatch.training.ranks import join_ranks
    from tvmatch.training.trained import load_run

    require_torchmetrics()
    preprocessing = Preprocessing()
    if options.statistics is not None:  # they say how the network is used
        told = read_statistics(options.statistics).provenance["network"]
        preprocessing = Preprocessing(told["size"], told["resize"], tuple(told["mean"]), tuple(told["deviation"]))
    with join_ranks("auto", options.device) as ranks:
        trained = load_run(options.run, options.ema, ranks.device)
        plan = EvaluationPlan(
            calls=options.nfe,
            scales=options.w or (trained.w,),
            samples=options.samples,
            seeds=options.seeds,
            method=options.method,
            statistics=options.statistics,
            batch_size=options.batch_size,
            precision=options.precision,
            codec=options.codec,
        )
        network = FeatureNetwork(options.features, preprocessing, ranks.device)
        rows = evaluate(options.run, trained, network, plan, out, ranks, lambda text: warn("evaluate", text))
    if ranks.main:
        if not (out.with_suffix("") / "tradeoff.png").is_file():
            warn("evaluate", "no plot was drawn: pip install 'tvmatch[eval]'")
        print(f"{options.run}, step {trained.step}, {options.samples} samples\n\n{table(rows)}\n{out}")
    return 0


def _in_pixels(options: EvaluateOptions, out: Path) -> int:
    from tvmatch.devices import choose_device
    from tvmatch.files import write_text
    from tvmatch.metrics.identity import require_in_pixels
    from tvmatch.metrics.report import evaluate_run, pins_of
    from tvmatch.training.trained import load_run

    refuse_ranks("without --features one process measures")
    defaults = EvaluateOptions(options.run)
    for name in ("statistics", "batch_size", "precision", "codec"):
        if getattr(options, name) != getattr(defaults, name):
            raise ValueError(
                f"--{name.replace('_', '-')} belongs to --features NETWORK; give that too, or leave it out."
            )
    if len(options.seeds) != 1:
        raise ValueError(f"without --features there is one seed, got {list(options.seeds)}.")
    require_in_pixels(out)
    check_replaced(out, ("checkpoint", "rows"))
    trained = load_run(options.run, options.ema, choose_device(options.device))
    scales, remarks = options.w or (trained.w,), []
    plan = options.nfe, scales, options.samples, options.seeds[0], options.method
    rows = evaluate_run(options.run, trained, *plan, remarks.append)
    for remark in remarks:
        warn("evaluate", remark)
    pins = pins_of(trained, options.samples, options.seeds[0], options.method)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(pins | {"remarks": remarks, "rows": rows}, indent=1) + "\n")
    _show(options, trained.step, rows, out)
    return 0


def _show(options: EvaluateOptions, step: int, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    # a line of its own: a title is wrapped to the width of the table
    print(f"{options.run}, step {step}, {options.samples} samples")
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    print(out)
