"""`tvmatch ablate`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console

from tvmatch.cli.options import parse
from tvmatch.telling import Lasting

if TYPE_CHECKING:
    from tvmatch.ablation.study import Study

DESCRIPTION = """Compare variants of the training options, each with several seeds: a table, pictures and a JSON file.

A study with a name: tvmatch ablate target-ema    (or all; --list says which there are)

A grid of your own: tvmatch ablate --vary target_ema=0,0.9,0.99 jumps=near,far --set steps=500

Every result is kept as soon as it is there; the same command goes on where it was stopped."""


@dataclass(frozen=True)
class AblateOptions:
    """What to compare."""

    studies: tyro.conf.Positional[tuple[str, ...]] = ()  # names of studies, or all
    list: bool = False  # list the studies
    vary: tuple[str, ...] = ()  # a grid: option=value,value ... of `tvmatch train`
    set: tuple[str, ...] = ()  # option=value ... of every run
    task: Literal["points", "pictures"] | None = None  # a mixture in the plane, or pictures (default: the study's own)
    seeds: int = 3  # runs of each variant
    nfe: tuple[int, ...] = (1, 2, 4)  # network calls a sample
    w: tuple[float, ...] = ()  # guidance scales to judge at (default: the study's own, or the one trained for)
    samples: int = 1000  # for each figure
    workers: int = 1  # runs at a time, each in a process with one thread
    out: Path = Path("runs/ablations")  # folder of the results
    keep: bool = False  # keep the folders of finished runs, not only their figures


def command(arguments: list[str]) -> int:
    """Run the studies with a line for each finished run; the tables go to the standard output."""
    options = parse(AblateOptions, "ablate", DESCRIPTION, arguments)
    from tvmatch.ablation.ablating import Plan, ablate
    from tvmatch.ablation.running import Interrupted
    from tvmatch.ablation.studies import STUDIES
    from tvmatch.ablation.study import parse_change

    if options.list:
        for name, study in STUDIES.items():
            print(f"{name}: {study.title} ({study.task}); {' / '.join(study.variants)}")
        return 0
    shared = {}
    for name, values in map(parse_change, options.set):
        if len(values) > 1:
            raise ValueError(f"--set gives every run one value; to compare several: --vary {name}=...")
        if name in shared:
            raise ValueError(f"--set {name} is given twice, {shared[name]} and {values[0]}; give one.")
        shared[name] = values[0]
    plan = Plan(choose_studies(options), options.seeds, options.nfe, options.samples, shared)
    console = Console(file=Lasting(sys.stderr))
    try:
        ablate(
            plan,
            options.out,
            options.workers,
            options.keep,
            lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
        )
    except Interrupted as interrupted:
        console.print(str(interrupted), highlight=False, markup=False, soft_wrap=True)
        return 128 + interrupted.number
    print((options.out / "ablations.md").read_text("utf-8"))
    print(options.out / "ablations.json")
    return 0


def choose_studies(options: AblateOptions) -> dict[str, "Study"]:
    """The named studies and the grid that were asked for, with their task and scales; `ValueError` if there is none."""
    from tvmatch.ablation.studies import STUDIES, find_study
    from tvmatch.ablation.study import Study, grid, parse_change

    names = list(STUDIES) if options.studies == ("all",) else list(options.studies)
    chosen = {name: find_study(name) for name in names}
    if options.vary:
        varied = [parse_change(text) for text in options.vary]
        chosen["grid"] = Study(", ".join(name for name, _ in varied), grid(varied), task=options.task or "points")
    if not chosen:
        raise ValueError(f"name a study ({', '.join(STUDIES)}, or all), or give a grid: --vary option=value,value.")
    for w in options.w:
        if not 0 < w < float("inf"):
            raise ValueError(f"the guidance scale w must be positive and finite (1 is no guidance), got {w:g}.")
    return {
        name: replace(study, task=options.task or study.task, scales=options.w or study.scales)
        for name, study in chosen.items()
    }
