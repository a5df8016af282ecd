"""Training and judging the cells of ablations: one after the other or in several processes, each result kept at once.

FOLDER/cells/KEY.json is a finished cell; FOLDER/runs/KEY is the run folder of one that is not (or was asked to stay).
"""

import json
import multiprocessing
import os
import queue
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from tvmatch.ablation.kept import Result, inputs_of, keep_result
from tvmatch.ablation.study import Cell
from tvmatch.ablation.tasks import base_config, check_options, judge, lipschitz, open_task
from tvmatch.devices import choose_device
from tvmatch.guidance import check_scale
from tvmatch.training.build import build_flow, build_objective, check_label_dropout, network_shape
from tvmatch.training.engine import compute_dtype, prepare_objective, should_capture, should_compile
from tvmatch.training.initial import load_initial
from tvmatch.training.loop import TrainingError, train
from tvmatch.training.preparing import check_shares
from tvmatch.training.run_folder import RunCompleteError
from tvmatch.training.signals import collected_signals
from tvmatch.training.trained import load_run


class Interrupted(Exception):
    """A signal ended the work; what was done is kept, and the same command goes on."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: stopped; the same command continues.")
        self.number = number


def check_cell(cell: Cell) -> list[str]:
    """Raise `ValueError` now for options that cannot be trained or judged with, before hours are spent on others;
    sentences of warning for guidance scales that the run would be judged at and not trained for."""
    check_options(cell.task, cell.config)
    check_shares(cell.config, processes=1)
    source = open_task(cell.task, cell.config)
    channels, side, _ = source.shape
    class_names = source.class_names
    shape = network_shape(cell.config, side, channels, source.num_classes)
    check_label_dropout(cell.config, source.labels)
    source.close()
    config, device = cell.config, choose_device(cell.config.device)
    flow = build_flow(config, shape)
    if config.initial is not None:
        load_initial(flow, Path(config.initial), class_names)
    should_capture(config.graphs, device, 1, config.accumulate)
    dtype, compiled = compute_dtype(config.precision, device), should_compile(config.compile, device)
    prepare_objective(build_objective(config, flow), dtype, compiled, config.recompute)
    found = (check_scale(w, cell.config.guidance, shape.num_classes) for w in cell.scales)
    return [warning for warning in found if warning is not None]


def run_cell(cell: Cell, folder: Path, keep: bool = False) -> Result:
    """Train a cell (or go on with it), judge it, and write its result. Raises `Interrupted` after a signal.

    A run whose steps are not finite, or that draws what is not finite, is a result too: `diverged` says so in words.
    """
    run = folder / "runs" / cell.key
    began, diverged = time.perf_counter(), None
    source = open_task(cell.task, cell.config)
    try:
        inputs = inputs_of(cell, source)
        outcome = train(replace(cell.config, run=run), source, show=False)
        if outcome.signal is not None:
            raise Interrupted(outcome.signal)
    except RunCompleteError:
        pass  # by its steps or its minutes: it was interrupted while it was judged
    except TrainingError as error:
        if isinstance(error.__cause__, OSError):  # the disk, not the training
            raise
        diverged = str(error).split(" They were")[0]
    finally:
        source.close()
    trained_seconds = time.perf_counter() - began
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    if diverged is None:
        trained = load_run(run)
        rows = judge(cell.task, run, trained, cell.calls, cell.scales, cell.samples)
        figures = gradient_norms(run) | {"lipschitz": lipschitz(cell.task, run, trained)}
        diverged = None if rows else "samples are not finite"
    result = {
        "key": cell.key,
        "task": cell.task,
        "seed": cell.config.seed,
        "options": changed_options(cell),
        "steps": cell.config.steps,
        "diverged": diverged,
        "rows": rows,
        "figures": figures,
        "seconds": trained_seconds,
        "inputs": inputs,
    }
    keep_result(cell, folder, result)
    if not keep:
        shutil.rmtree(run, ignore_errors=True)
    return result


def changed_options(cell: Cell) -> dict[str, Any]:
    """What the cell's options are beside those of its task."""
    base, names = base_config(cell.task), {field.name for field in fields(cell.config)} - {"run", "seed"}
    return {name: value for name in sorted(names) if (value := getattr(cell.config, name)) != getattr(base, name)}


def gradient_norms(run: Path) -> dict[str, float]:
    """Mean and largest gradient norm, before clipping, over the second half of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    norms = [line["gradient_norm"] for line in lines[len(lines) // 2 :] if "gradient_norm" in line]
    return {"gradient_norm": sum(norms) / len(norms), "largest_gradient_norm": max(norms)} if norms else {}


def run_cells(cells: Sequence[Cell], folder: Path, workers: int = 1, keep: bool = False) -> Iterator[Result]:
    """Results of `cells`, as each is done. Raises `Interrupted` after SIGINT or SIGTERM, when all has been saved."""
    if workers == 1:
        with collected_signals(0) as caught:  # `train` collects them itself; these come while a run is judged
            for cell in cells:
                if caught:
                    raise Interrupted(caught[0])
                yield run_cell(cell, folder, keep)
        return
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    for cell in [*cells, *[None] * workers]:
        tasks.put(cell)
    processes = [context.Process(target=_work, args=(tasks, results, folder, keep)) for _ in range(workers)]
    with collected_signals(0) as caught:
        for process in processes:
            process.start()
        try:
            yield from _collect(results, processes, len(cells), caught)
        finally:
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)
            for process in processes:
                process.join()


def _collect(results: Any, processes: list, count: int, caught: list[signal.Signals]) -> Iterator[Result]:
    while count:
        if caught:
            raise Interrupted(caught[0])
        ended = all(process.exitcode is not None for process in processes)  # before: what the last one gave is there
        try:
            found = results.get(timeout=0.5)
        except queue.Empty:
            dead = [process for process in processes if process.exitcode not in (None, 0)]
            if dead and not caught:
                raise RuntimeError(f"a worker died with exit code {dead[0].exitcode}.") from None
            if ended and not caught:  # one that a signal stops in the middle of a run ends without a result of it
                raise RuntimeError(
                    f"all workers have ended, and {count} run{'s have' if count > 1 else ' has'} no result; the same "
                    "command continues."
                ) from None
            continue
        if isinstance(found, BaseException):
            raise found
        count -= 1
        yield found


def _work(tasks: Any, results: Any, folder: Path, keep: bool) -> None:
    """One process: cells from the queue until a None, or a signal, which `train` collects while it trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the parent passes SIGTERM on
    torch.set_num_threads(1)
    while (cell := tasks.get()) is not None:
        try:
            results.put(run_cell(cell, folder, keep))
        except Interrupted:
            return
        except Exception as error:
            results.put(error)
            return
