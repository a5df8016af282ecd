"""Whole ablations: which cells the studies need, running those that are not done, and writing what they showed."""

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tvmatch.ablation.kept import Result, changed_inputs, discard, finished
from tvmatch.ablation.report import draw, markdown, require_matplotlib, summarise
from tvmatch.ablation.running import Interrupted, check_cell, run_cells
from tvmatch.ablation.study import Cell, Changes, Study, cells_of, check_shared
from tvmatch.ablation.tasks import base_config
from tvmatch.files import write_text


@dataclass(frozen=True)
class Plan:
    """Studies by name, and how each of their runs is trained and judged."""

    studies: Mapping[str, Study]
    seeds: int
    calls: tuple[int, ...] = (1, 2, 4)
    samples: int = 1000
    options: Changes = dataclasses.field(default_factory=dict)  # of every run

    def rows(self, name: str) -> list[tuple[str, int, Cell]]:
        """(variant, seed, cell) of one study. `ValueError` for an option out of its range."""
        study = self.studies[name]
        check_shared(name, study, self.options)
        base = dataclasses.replace(base_config(study.task), **self.options)
        return cells_of(study, base, self.seeds, self.calls, self.samples)

    def cells(self) -> dict[str, Cell]:
        """Every cell once, by its key, the seeds outermost: what is stopped early has whole seeds of all studies."""
        cells = {cell.key: cell for name in self.studies for _, _, cell in self.rows(name)}
        return dict(sorted(cells.items(), key=lambda item: item[1].config.seed))


def ablate(
    plan: Plan, out: Path, workers: int = 1, keep: bool = False, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run what is not done yet, and write OUT/ablations.json, OUT/ablations.md and OUT/STUDY.png; the report.

    Every option is checked before the first run; what `tvmatch train` would refuse stops all. After a signal
    `Interrupted` is raised, when all that is there has been written; the same call goes on. `say` is told of every
    finished run, with the time left, and before them of guidance scales to judge at that a run is not trained for.
    """
    if min(plan.calls, default=0) < 1 or plan.samples < 2:
        raise ValueError(f"calls must be at least 1 and samples at least 2, got {plan.calls} and {plan.samples}.")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    require_matplotlib()  # for the pictures at the end
    check_report(plan, out)
    cells = plan.cells()
    # a cell is its options and how it is judged: two studies may judge one run at different scales
    alike = {(dataclasses.replace(cell.config, seed=0), cell.scales): cell for cell in cells.values()}
    for warning in dict.fromkeys(warning for cell in alike.values() for warning in check_cell(cell)):
        say(warning)
    out.mkdir(parents=True, exist_ok=True)
    results = {key: found for key, cell in cells.items() if (found := finished(cell, out)) is not None}
    changed = changed_inputs(results, cells)
    for what in dict.fromkeys(changed.values()):
        say(f"{what} is not what it was; run again: {list(changed.values()).count(what)} of the finished runs")
    for key in changed:
        discard(cells[key], out)
        del results[key]
    left = [cell for key, cell in cells.items() if key not in results]
    say(f"{len(cells)} runs, {len(results)} of them done already")
    began, done = time.monotonic(), 0
    try:
        for result in run_cells(left, out, workers, keep):
            results[result["key"]] = result
            done += 1
            remaining = (time.monotonic() - began) / done * (len(left) - done)
            say(f"{len(results)}/{len(cells)}  {describe(result)}  {remaining:.0f} s left")
    except Interrupted:
        write_report(plan, results, out)
        raise
    return write_report(plan, results, out)


def describe(result: Result) -> str:
    """A finished run in one line."""
    options = ", ".join(f"{name}={value}" for name, value in result["options"].items()) or "as in the paper"
    figures = result["diverged"] or "  ".join(
        f"{name} {value:.3g}" for name, value in result["rows"][0].items() if name not in ("nfe", "w")
    )
    return f"{result['task']}, {options}, seed {result['seed']}: {figures}, {result['seconds']:.0f} s"


def check_report(plan: Plan, out: Path) -> None:
    """`ValueError` if the report in `out` holds what this plan's would leave out, studies, variants, calls, guidance
    scales or seeds, or is of other options or samples. More of everything may be asked for later."""
    path = out / "ablations.json"
    held = read_report(path)
    options = json.loads(json.dumps(plan.options))  # tuples are lists in the report
    differences = [
        f"{name} {theirs} (now {ours})"
        for name, theirs, ours in (
            ("seeds", max(held.get("seeds", 0), plan.seeds), plan.seeds),
            ("samples", held.get("samples", plan.samples), plan.samples),
            ("options", held.get("options", options), options),
        )
        if theirs != ours
    ]
    if differences:
        raise ValueError(
            f"{path} is of {', '.join(differences)}, and this would replace it; ask for the same (or for more "
            "seeds), or choose another --out."
        )
    lost = [name for name, study in held["studies"].items() if not _covers(plan, name, study)]
    if lost:
        raise ValueError(
            f"{path} reports {', '.join(lost)}, which this would leave out, whole or in part (variants, task, "
            "nfe, w); ask for the same as well, or choose another --out."
        )


def _covers(plan: Plan, name: str, held: dict[str, Any]) -> bool:
    """Whether the plan has the task, the variants and the rows of a study in a report."""
    if name not in plan.studies or held.get("task", plan.studies[name].task) != plan.studies[name].task:
        return False
    rows = {(v, nfe, w) for v, _, cell in plan.rows(name) for nfe in cell.calls for w in cell.scales}
    theirs = {(row["variant"], row["nfe"], row["w"]) for row in held.get("summary", ()) if "nfe" in row}
    return set(held["cells"]) <= set(plan.studies[name].variants) and theirs <= rows


def read_report(path: Path) -> dict[str, Any]:
    """The report in a folder, without studies if there is none; `ValueError` where it is damaged."""
    if not path.is_file():
        return {"studies": {}}
    try:
        held = json.loads(path.read_text("utf-8"))
        whole = isinstance(held.get("seeds", 0), int)
        whole = whole and all(
            isinstance(study["cells"], dict) and all("variant" in row for row in study.get("summary", ()))
            for study in held["studies"].values()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path} is damaged; move it away: the same command writes it again, from the finished runs in "
            f"{path.parent / 'cells'}."
        )
    return held


def write_report(plan: Plan, results: dict[str, Result], out: Path) -> dict[str, Any]:
    """Tables, pictures and JSON of the results that are there, by the keys of their cells."""
    studies, tables = {}, []
    for name, study in plan.studies.items():
        rows = plan.rows(name)
        table = summarise(study, {(v, seed): results[cell.key] for v, seed, cell in rows if cell.key in results})
        runs = {variant: [cell.key for v, _, cell in rows if v == variant] for variant in study.variants}
        studies[name] = {"title": study.title, "task": study.task, "cells": runs, "summary": table}
        tables.append(markdown(name, study, table))
    report = {
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
        "seeds": plan.seeds,
        "samples": plan.samples,
        "options": plan.options,
        "studies": studies,
        "runs": list(results.values()),
    }
    write_text(out / "ablations.json", json.dumps(report, indent=1) + "\n")
    write_text(out / "ablations.md", "\n".join(tables))
    for name, study in plan.studies.items():
        draw(name, study, studies[name]["summary"], out / f"{name}.png")
    return report
