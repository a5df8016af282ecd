#!/usr/bin/env python3
"""Several seeds of one or more methods on CIFAR-10 in equal minutes, one run on each GPU at a time, and their means.

    python runs/cifar10_seeds.py OUT DATA FEATURES [--objectives terminal-velocity mean-flow] [--seeds 0 1 2] [--gpus 0]

Every run is one of `runs/cifar10_1gpu.sh` with this environment (MINUTES, NETWORK, W, NFE, ...), in
OUT/METHOD_SECONDSs_seedN; what may go into a repository is in OUT/results/METHOD_SECONDSs_seedN, beside table.md. The
first seed of a method chooses its average and guidance scale, and its others are scored at that pair, before anybody
looks; PAIR is that of all.

Interrupted (TERM or INT), every run saves, and the same command continues; the exit code is then 143 or 130. A run that
fails ends no other, but those that would take its choice are not begun; the exit code is then 1. Plain Python.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

RECIPE = Path(__file__).resolve().with_name("cifar10_1gpu.sh")
FOLDERS = {"terminal-velocity": "tvm"}  # as the committed runs are named
OWN = ("SEED", "RESULTS", "STATISTICS")  # variables that each run has of its own


@dataclass(frozen=True)
class Job:
    """One run: a method and its seed of training."""

    objective: str
    seed: int
    seconds: int

    @property
    def name(self) -> str:
        return f"{FOLDERS.get(self.objective, self.objective.replace('-', '_'))}_{self.seconds}s_seed{self.seed}"


@dataclass
class Runs:
    """Those of one folder: what trains on each GPU, what failed, and the signals that came."""

    out: Path
    inputs: list[str]  # DATA and FEATURES
    first_seed: int
    busy: dict[int, tuple[Job, subprocess.Popen]] = field(default_factory=dict)
    failed: list[Job] = field(default_factory=list)
    caught: list[int] = field(default_factory=list)

    @property
    def statistics(self) -> Path:
        return self.out / "cifar10_statistics.safetensors"

    def pair(self, job: Job) -> str | None:
        """The average and w at which it is scored; "" where it chooses them, None as long as its first seed has not."""
        if os.environ.get("PAIR") or job.seed == self.first_seed:
            return os.environ.get("PAIR", "")
        first = Job(job.objective, self.first_seed, job.seconds)
        best = self.out / first.name / "best"
        done = first not in [job for job, _ in self.busy.values()] and best.exists()
        return best.read_text().strip() if done else None

    def hopeless(self, job: Job) -> bool:
        """Whether it would wait for the choice of a run that failed."""
        return self.pair(job) is None and Job(job.objective, self.first_seed, job.seconds) in self.failed

    def start(self, job: Job, gpu: int) -> None:
        ours = {"CUDA_VISIBLE_DEVICES": str(gpu), "SEED": str(job.seed), "PAIR": self.pair(job) or ""}
        ours |= {"RESULTS": str(self.out / "results" / job.name), "STATISTICS": str(self.statistics)}
        command = ["bash", str(RECIPE), str(self.out / job.name), *self.inputs, job.objective]
        with open(self.out / f"{job.name}.log", "a") as log:
            # in a session of its own: a terminal's Ctrl-C comes once, from here
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(command, env=os.environ | ours, start_new_session=True, **streams)
        self.busy[gpu] = (job, process)

    def collect(self) -> None:
        """Take note of what has ended."""
        for gpu, (job, process) in list(self.busy.items()):
            if process.poll() is not None:
                del self.busy[gpu]
                say(f"{job.name} ended with code {process.returncode}")
                self.failed += [job] if process.returncode else []

    @contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        """As TERM, for which a run saves."""

        def pass_on(number: int, _: object) -> None:
            self.caught.append(number)
            for _, process in list(self.busy.values()):
                process.terminate()

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        earlier = [signal.signal(number, pass_on) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, earlier, strict=True):
                signal.signal(number, handler)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run_all(runs: Runs, jobs: list[Job], gpus: list[int]) -> None:
    """Each job on a GPU as soon as one is free and its average and w are known."""
    waiting, begun = list(jobs), 0
    with runs.passing_signals_on():
        while (waiting and not runs.caught) or runs.busy:
            runs.collect()
            for job in [job for job in waiting if runs.hopeless(job)]:
                say(f"{job.name} is not begun: seed {runs.first_seed} failed before it chose average and w")
                runs.failed.append(job)
                waiting.remove(job)
            free = [gpu for gpu in gpus if gpu not in runs.busy]
            ready = [job for job in waiting if runs.pair(job) is not None]
            for job, gpu in zip(ready, free, strict=False):
                if runs.caught:
                    break
                begun += 1
                waiting.remove(job)
                at = f", scored at average and w {runs.pair(job)}" if runs.pair(job) else ""
                say(f"{job.name} on GPU {gpu} ({begun} of {len(jobs)}{at}): {runs.out / job.name}.log")
                runs.start(job, gpu)
            time.sleep(0.2)


def table(results: Path) -> str:
    """Frechet distances of every run, by number of samples and calls, and their means over the seeds of a method."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}  # of each method, samples and calls: of each seed
    for path in sorted(results.glob("*_seed*/evaluation*.json")):
        evaluation = json.loads(path.read_text())
        method, seed = path.parent.name.rsplit("_seed", 1)
        for row in evaluation["rows"]:
            found.setdefault((method, evaluation["samples"], row["nfe"]), {})[seed] = row["frechet"]
    lines = ["| runs | samples | calls | Frechet distance of each seed | mean |", "|---|---|---|---|---|"]
    for (method, samples, calls), seeds in sorted(found.items()):
        values = list(seeds.values())
        average = f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
        each = " / ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {method}, seeds {', '.join(seeds)} | {samples:,} | {calls} | {each} | {average} |")
    return "\n".join(lines) + "\n"


def seconds_given() -> int:
    """Of MINUTES; `ValueError` if they are none."""
    minutes = os.environ.get("MINUTES", "7")
    try:
        seconds = round(60 * float(minutes))
    except (ValueError, OverflowError):
        seconds = 0
    if seconds <= 0:
        raise ValueError(f"MINUTES={minutes!r} should be a number of minutes above 0")
    return seconds


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("data", type=Path, help="cifar10_train.npz")
    parser.add_argument("features", type=Path, help="inception.pt")
    parser.add_argument("--objectives", nargs="+", default=["terminal-velocity", "mean-flow"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of training")
    parser.add_argument("--gpus", nargs="+", type=int, default=[0], metavar="N", help="their numbers")
    given = parser.parse_args()
    for name in OWN:
        if os.environ.get(name):
            parser.error(f"{name}={os.environ[name]!r} is of one run, and each has its own here; unset it")
    for name in ("objectives", "seeds", "gpus"):
        values = getattr(given, name)
        if len(set(values)) < len(values):
            parser.error(f"--{name} names one twice: {' '.join(map(str, values))}")
    for path in (given.data, given.features):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    try:
        given.seconds = seconds_given()
    except ValueError as error:
        parser.error(str(error))
    return given


def main() -> int:
    given = options()
    inputs = [str(path.resolve()) for path in (given.data, given.features)]
    runs = Runs(given.out.resolve(), inputs, given.seeds[0])
    (runs.out / "results").mkdir(parents=True, exist_ok=True)
    if not runs.statistics.exists():  # before all of them: two runs would do it at once
        command = [
            *shlex.split(os.environ.get("TVMATCH", "python3 -m tvmatch")),
            "statistics",
            inputs[0],
            str(runs.statistics),
        ]
        command += ["--features", inputs[1], "--keep", os.environ.get("KEEP", "50000")]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": str(given.gpus[0])}
        code = subprocess.run(command, cwd=RECIPE.parents[1], env=environment).returncode
        if code:
            return code if code > 0 else 128 - code
    # the first seeds of all methods before the others, which wait for what those choose
    jobs = [Job(objective, seed, given.seconds) for seed in given.seeds for objective in given.objectives]
    run_all(runs, jobs, given.gpus)
    (runs.out / "results" / "table.md").write_text(table(runs.out / "results"))
    print(f"\n{table(runs.out / 'results')}\n{runs.out / 'results'}")
    return 128 + runs.caught[0] if runs.caught else int(bool(runs.failed))


if __name__ == "__main__":
    raise SystemExit(main())
