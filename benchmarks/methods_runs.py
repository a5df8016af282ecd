"""What methods_2d.py and methods_digits.py share: equal training of every method, in processes.

A budget in seconds is of CPU time (`time.process_time`) of a process with one thread: other processes on the machine do
not shorten it, unless they slow the core itself, which they do. A budget in passes is of arithmetic, counted in forward
passes (`tvmatch.training.bench.forward_passes`), and the same on every machine. Rows are kept in one JSON file, written
after each; a second call with the same options does the rows that are missing.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kept_rows import machine
from tvmatch.files import write_text
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import parse_guidance
from tvmatch.objectives import InductiveMomentMatching, MeanFlow, Objective
from tvmatch.provenance import commit
from tvmatch.training.bench import FORWARD_PASSES, forward_passes
from tvmatch.training.build import build_objective
from tvmatch.training.config import TrainConfig
from tvmatch.training.ema import EvaluationEma, move_towards


@dataclass(frozen=True)
class Method:
    """An objective by its name, and what differs from its own settings."""

    objective: str
    target_ema: float | None = None  # None: as the command says
    plain: bool = False  # MeanFlow without its adaptive weight
    terminal_every: int = 1  # TVM with its terminal term on every n-th sample only
    group: int | None = None  # samples that moment matching compares, in place of its own number

    def build(self, flow: FlowMap, guidance: str) -> Objective:
        config = TrainConfig(objective=self.objective, guidance=guidance, terminal_every=self.terminal_every)
        if self.group is not None:
            dropout = config.label_dropout
            return InductiveMomentMatching(flow, None, parse_guidance(guidance), dropout, group=self.group)
        objective = build_objective(config, flow)
        if self.plain:
            assert isinstance(objective, MeanFlow)
            objective.power = 0.0
        return objective


METHODS = {name: Method(name) for name in FORWARD_PASSES}
VARIANTS = {
    "terminal-velocity, target 0": Method("terminal-velocity", target_ema=0.0),
    "terminal-velocity, target 0.9": Method("terminal-velocity", target_ema=0.9),
    "terminal-velocity, target 0.99": Method("terminal-velocity", target_ema=0.99),
    "terminal-velocity, every 4th": Method("terminal-velocity", terminal_every=4),
    "mean-flow, no adaptive weight": Method("mean-flow", plain=True),
    "inductive-moment-matching, alone": Method("inductive-moment-matching", group=1),
}
NAMED = ("inductive-moment-matching, alone",)  # run only where they are asked for by name


@dataclass(frozen=True)
class Training:
    """How every method is trained: until `seconds` of CPU time, `steps`, or forward `passes` of arithmetic are done."""

    seconds: float | None = 20.0
    steps: int | None = None
    passes: int | None = None
    guided: bool = False  # an unconditional velocity is one of the passes
    batch: int = 256
    learning_rate: float = 2e-3
    warmup: int = 50
    ema: float = 0.95  # decay of the weights that are judged
    target_ema: float = 0.95  # decay of the target, for methods that have one

    def __post_init__(self) -> None:
        if sum(budget is not None for budget in (self.seconds, self.steps, self.passes)) != 1:
            raise ValueError(f"give one of seconds, steps and passes: {self.seconds}, {self.steps}, {self.passes}.")

    def steps_of(self, method: Method) -> int | None:
        """The steps that the budget allows; None where seconds decide."""
        if self.passes is None:
            return self.steps
        return max(1, round(self.passes / forward_passes(method.objective, self.guided, method.terminal_every)))

    def __call__(
        self, method: Method, objective: Objective, draw: Callable[[int], tuple[Tensor, Tensor]], seed: int
    ) -> tuple[FlowMap, dict[str, Any]]:
        """Train on batches of `draw(step)`; the judged average, and what the training was."""
        flow, step, steps = objective.flow, 0, self.steps_of(method)
        ema = EvaluationEma(flow, (self.ema,))
        _do_once(objective, draw)
        parameters = list(objective.trained().values())
        optimizer = torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        target_ema = self.target_ema if method.target_ema is None else method.target_ema
        began = time.process_time()
        while (done := self.progress(step, steps, began)) < 1:
            for group in optimizer.param_groups:  # a short warm-up; in the second half a fall to zero
                group["lr"] = self.learning_rate * min(1.0, (step + 1) / self.warmup, 2 * (1 - done))
            objective.advance(done)
            objective.seed(seed * 1_000_003 + step)
            optimizer.zero_grad()
            loss = objective(*draw(step)).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if not bool(norm.isfinite()):
                raise RuntimeError(f"{method}: loss {float(loss)} and gradient norm {float(norm)} at step {step}.")
            optimizer.step()
            step += 1
            moving = ema.at(step)
            move_towards(moving if objective.target is None else [*moving, (objective.target, target_ema)], flow)
        return ema.flows[self.ema], {"steps": step, "seconds": time.process_time() - began}

    def progress(self, step: int, steps: int | None, began: float) -> float:
        """The share of the budget that is used."""
        return (time.process_time() - began) / self.seconds if steps is None else step / steps


def _do_once(objective: Objective, draw: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    """What a process does once (PyTorch imports its compiler with the first step of an optimiser) is no part of the
    first training in it."""
    objective(*draw(0)).loss.backward()
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()


def add_options(parser: argparse.ArgumentParser, seconds: float, out: Path, data: Sequence[str] = ()) -> None:
    """The options of both commands."""
    training = Training()
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, help=f"CPU time of each training (default {seconds:g})")
    budget.add_argument("--steps", type=int, help="steps of each training, in place of seconds")
    budget.add_argument("--passes", type=int, help="forward passes of arithmetic of each training, in place of seconds")
    parser.set_defaults(default_seconds=seconds)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--wall", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--batch", type=int, default=training.batch)
    parser.add_argument("--learning-rate", type=float, default=training.learning_rate)
    parser.add_argument("--ema", type=float, default=training.ema, help="decay of the weights that are judged")
    parser.add_argument("--target-ema", type=float, default=training.target_ema, help="of methods with a target")
    names = [*METHODS, *VARIANTS]
    parser.add_argument("--methods", nargs="+", choices=names, metavar="NAME")
    parser.set_defaults(methods=[name for name in names if name not in NAMED])
    if data:
        parser.add_argument("--data", nargs="+", choices=data, default=list(data))
    parser.add_argument("--note", default="", help="kept in the results")
    parser.add_argument("--commit", default="", help="kept in the results and their rows; default: what git says")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--plot", type=Path, metavar="RESULTS", help="draw these results and train nothing")


def training_of(options: argparse.Namespace) -> Training:
    """The training that the options describe."""
    seconds = None if options.steps or options.passes else options.seconds or options.default_seconds
    return Training(
        seconds=seconds,
        steps=options.steps,
        passes=options.passes,
        guided=options.guided,
        batch=options.batch,
        learning_rate=options.learning_rate,
        ema=options.ema,
        target_ema=options.target_ema,
    )


def budget_of(training: dict[str, Any]) -> str:
    """The budget of results, in words."""
    if training["seconds"]:
        return f"{training['seconds']:g} s of CPU time"
    return f"{training['passes']:,} forward passes" if training.get("passes") else f"{training['steps']} steps"


def told(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """What was asked for and on what machine; results of another kind are not continued."""
    training = dict(vars(training_of(options)))
    if training["passes"] is None:  # results of before there were passes are continued
        del training["passes"], training["guided"]
    processor, version = machine().rsplit(", ", 1)
    return {
        "machine": f"{processor}, 1 thread a run, {version}",
        "training": training,
        **{name: getattr(options, name) for name in names},
    }


def run_all(
    jobs: Sequence[dict[str, Any]],
    measure: Callable[[dict[str, Any], argparse.Namespace], dict[str, Any]],
    options: argparse.Namespace,
    head: dict[str, Any],
) -> dict[str, Any]:
    """`measure` every job that `options.out` does not hold, in `options.workers` processes; all rows with `head`. Each
    new row tells the commit and the machine that it comes from."""
    source = {"commit": options.commit or commit() or "", "machine": head["machine"]}
    result = {**head, "note": options.note, "commit": source["commit"], "planned_runs": len(jobs), "runs": []}
    if options.out.exists():
        before = json.loads(options.out.read_text())
        if {name: before.get(name) for name in head} != json.loads(json.dumps(head)):
            raise SystemExit(f"{options.out} holds results of other options or another machine; give another --out.")
        result["runs"] = before["runs"]
    have = [{name: row.get(name) for name in jobs[0]} for row in result["runs"]]
    missing = [job for job in jobs if job not in have]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them there already", flush=True)
    began, waiting, failed = time.perf_counter(), list(missing), 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {}
        while waiting or running:
            while waiting and len(running) < options.workers and time.perf_counter() - began < options.wall:
                job = waiting.pop(0)
                running[pool.submit(measure, job, options)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                if (error := future.exception()) is not None:
                    failed += 1
                    print(f"{job} failed: {error!r}", flush=True)
                    continue
                row = future.result() | source
                result["runs"].append(row)
                write_text(options.out, json.dumps(result, indent=1) + "\n")
                done = len(missing) - len(waiting) - len(running)
                left = (time.perf_counter() - began) / done * (len(missing) - done)
                print(f"{done}/{len(missing)} {' '.join(map(str, row.values()))}, {left:.0f} s left", flush=True)
    if waiting:
        print(f"{len(waiting)} runs left out after {options.wall:g} s; the same command goes on")
    if failed:
        raise SystemExit(f"{failed} runs failed; the same command tries them again")
    return result


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """Of the values of several seeds; the deviation of one is None."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "deviation": deviation, "seeds": len(values)}
