"""`tvmatch bench step`, and `tvmatch bench sample` (`bench_sample.py`)."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from tvmatch.cli.options import check_out, check_place, check_replaced, parse, refuse_ranks
from tvmatch.training.config import Compile, Graphs, ObjectiveName, OptimizerName, Precision, Recompute

DESCRIPTION = """Measure a training step on random data: images a second, memory, share of the machine's matrix rate
(11 forward passes counted for TVM), seconds of the first step, in which everything is compiled (not of what a run does
before it), and the cost relative to a flow-matching step with the same guidance and to one without.

What sampling costs: tvmatch bench sample --help"""

UNGUIDED = "1"


@dataclass(frozen=True)
class BenchOptions:
    """What to measure."""

    what: tyro.conf.Positional[Literal["step"]]  # a training step
    network: str = "DiT-S/2"  # see `tvmatch presets`
    image_size: int = 32  # pixels (or latent cells) a side
    channels: int = 4  # of the pictures (or latents)
    classes: int = 1000  # 0: unconditional
    batch_size: int = 64  # samples a step
    objective: ObjectiveName = "terminal-velocity"  # whose step it is
    guidance: str | None = None  # w, as for `tvmatch train` (default: 2, or 1 without classes)
    terminal_every: int = 1  # the terminal term of every n-th sample only (TVM)
    optimizer: OptimizerName = "adamw"  # as for `tvmatch train`
    precision: Precision = "auto"  # of the blocks (auto: bfloat16 on a GPU)
    compile: Compile = "auto"  # compile the blocks (auto: on a GPU)
    graphs: Graphs = "auto"  # record the step as a CUDA graph (auto: on a GPU)
    recompute: Recompute = "none"  # activations to compute again in the backward pass
    steps: int = 10  # timed steps
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
    out: Path | None = None  # write the rows to this JSON file


def command(arguments: list[str]) -> int:
    """Measure the step, and flow-matching steps beside it; print all and the ratios."""
    if arguments[:1] == ["sample"]:
        from tvmatch.cli import bench_sample

        return bench_sample.command(arguments[1:])
    options = parse(BenchOptions, "bench", DESCRIPTION, arguments)
    refuse_ranks("one process measures (of several: benchmarks/train_step.py)")
    if options.out is not None:
        check_out(options.out, (".json",))
        check_place(options.out)
        check_replaced(options.out, ("device", "rows", "matmul_tflops"))
    if options.batch_size < 1 or options.steps < 1:
        raise ValueError(f"batch-size and steps must be at least 1, got {options.batch_size} and {options.steps}.")
    import torch

    from tvmatch.devices import choose_device
    from tvmatch.files import write_text
    from tvmatch.guidance import parse_guidance
    from tvmatch.training.bench import StepCase, matmul_tflops, measure_step
    from tvmatch.training.ranks import Ranks

    guidance = ("2" if options.classes else UNGUIDED) if options.guidance is None else options.guidance
    if parse_guidance(guidance).always_one:
        guidance = UNGUIDED  # `1.0` is the same step
    elif not options.classes:
        raise ValueError(f"--guidance {guidance}: without classes w must be 1.")
    device = choose_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    matmul = matmul_tflops(device)
    print(f"{name}, torch {torch.__version__}, matrix product {matmul:.2f} TFLOP/s", file=sys.stderr)
    rows = []
    objectives: list[tuple[ObjectiveName, str, int]] = [(options.objective, guidance, options.terminal_every)]
    if options.objective != "flow-matching":
        # with guidance as an input of both, like beside like; and the plain one, which needs no unconditional velocity
        objectives += [("flow-matching", scale, 1) for scale in dict.fromkeys((guidance, UNGUIDED))]
    for objective, scale, terminal_every in objectives:
        case = StepCase(
            network=options.network,
            image_size=options.image_size,
            channels=options.channels,
            batch=options.batch_size,
            objective=objective,
            guidance=scale,
            recompute=options.recompute,
            precision=options.precision,
            compile=options.compile,
            graphs=options.graphs,
            classes=options.classes,
            terminal_every=terminal_every,
            optimizer=options.optimizer,
        )
        rows.append(measure_step(case, Ranks(device), matmul, options.steps))
    for row in rows:
        memory = "" if row["peak_gib"] is None else f", {row['peak_gib']:.1f} GiB"
        skipped = f", {row['skipped_steps']} steps skipped: not finite" if row["skipped_steps"] else ""
        Console().print(
            f"{row['objective']:>17}, w {row['guidance']}: {row['images_per_second']:.1f} images/s, "
            f"{row['milliseconds']:.1f} ms a step{memory}, utilisation {row['mfu']:.2f}, "
            f"first step alone {row['compile_seconds']:.1f} s{skipped}",
            highlight=False,
            soft_wrap=True,
        )
    for other in rows[1:]:
        times = rows[0]["milliseconds"] / other["milliseconds"]
        how = "without guidance" if other["guidance"] == UNGUIDED else f"with w {other['guidance']}"
        print(f"a step costs {times:.2f} times one of flow matching {how}")
    if options.out is not None:
        result = {"device": name, "torch": torch.__version__, "matmul_tflops": matmul, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    return 0
