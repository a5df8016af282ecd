#!/usr/bin/env python3
"""Several seeds of one or more methods on CIFAR-10 in equal minutes, one run on each GPU at a time, and their means.

    python runs/cifar10_seeds.py OUT DATA FEATURES [--objectives terminal-velocity mean-flow] [--seeds 0 1 2] [--gpus 0]

Every run is one of `runs/cifar10_1gpu.sh` with this environment (MINUTES, NETWORK, W, NFE, ...), in
OUT/METHOD_SECONDSs_seedN; what may go into a repository is in OUT/results/METHOD_SECONDSs_seedN, beside table.md. The
first seed of a method chooses its average and guidance scale, and its others, those of later commands too, are scored
at that pair, before anybody looks; PAIR is that of all. --gpus counts among CUDA_VISIBLE_DEVICES, if that is set.

Interrupted (TERM or INT), every run saves, and the same command continues; the exit code is then 143 or 130. A run that
fails ends no other, but those that would take its choice are not begun; the exit code is then 1. Plain Python.
"""

import argparse
import fcntl
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cifar10_records import table_of_means

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
    def series(self) -> str:
        """What its seeds have in common."""
        return f"{FOLDERS.get(self.objective, self.objective.replace('-', '_'))}_{self.seconds}s"

    @property
    def name(self) -> str:
        return f"{self.series}_seed{self.seed}"


class Child:
    """A process in a session of its own (a terminal's Ctrl-C comes once, from here), and all that it starts."""

    def __init__(self, command: list[str], environment: dict[str, str], lock: int, log: Path | None = None) -> None:
        # the end of a pipe that it and all its children hold: what has been read to its end has none left
        self._alive, held = os.pipe()
        with open(log or os.devnull, "a") as file:
            out = {} if log is None else {"stdout": file, "stderr": file}
            self.process = subprocess.Popen(
                command, env=os.environ | environment, stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=RECIPE.parents[1], pass_fds=(held, lock), **out,
            )  # fmt: skip
        os.close(held)

    def ended(self) -> int | None:
        """Its exit code. One that was killed has ended when its children have: they train on."""
        code = self.process.poll()
        if code is None or (code < 0 and not select.select([self._alive], [], [], 0)[0]):
            return None
        os.close(self._alive)
        return code


@dataclass
class Runs:
    """Those of one folder: what waits, what trains on each GPU, what failed, and the signals that came."""

    out: Path
    inputs: list[str]  # DATA and FEATURES
    waiting: list[Job]
    lock: int  # descriptor of the locked folder
    busy: dict[str, tuple[Job | None, Child]] = field(default_factory=dict)  # of each GPU; None: statistics
    failed: list[Job] = field(default_factory=list)
    caught: list[int] = field(default_factory=list)
    firsts: dict[str, Job] = field(init=False)  # of each series the run that chooses

    def __post_init__(self) -> None:
        self.firsts = {}
        for job in self.waiting:
            earlier = [path.parent.name for path in sorted(self.out.glob(f"{job.series}_seed*/choose"))]
            seeds = sorted(int(name.rpartition("_seed")[2]) for name in earlier)
            self.firsts.setdefault(job.series, Job(job.objective, seeds[0], job.seconds) if seeds else job)

    @property
    def statistics(self) -> Path:
        return self.out / "cifar10_statistics.safetensors"

    def pair(self, job: Job) -> str | None:
        """The average and w at which it is scored; "" where it chooses them, None as long as another has not."""
        first = self.firsts[job.series]
        if os.environ.get("PAIR") or job == first:
            return os.environ.get("PAIR", "")
        best = self.out / first.name / "best"
        return best.read_text().strip() if self._is_over(first) and best.exists() else None

    def hopeless(self, job: Job) -> bool:
        """Whether it waits for the choice of a run that has made none."""
        return self.pair(job) is None and self._is_over(self.firsts[job.series])

    def _is_over(self, job: Job) -> bool:
        return job not in self.waiting and job not in [busy for busy, _ in self.busy.values()]

    def start(self, job: Job | None, gpu: str, command: list[str], environment: dict[str, str]) -> None:
        log = None if job is None else self.out / f"{job.name}.log"
        child = Child(command, {"CUDA_VISIBLE_DEVICES": gpu} | environment, self.lock, log)
        self.busy[gpu] = (job, child)
        if self.caught:  # it came while this one was made
            child.process.terminate()

    def begin(self, job: Job, gpu: str, pair: str) -> None:
        """Train and score one run."""
        self.waiting.remove(job)
        ours = {"SEED": str(job.seed), "PAIR": pair, "STATISTICS": str(self.statistics)}
        ours |= {"RESULTS": str(self.out / "results" / job.name)}
        self.start(job, gpu, ["bash", str(RECIPE), str(self.out / job.name), *self.inputs, job.objective], ours)

    def collect(self) -> None:
        """Take note of what has ended."""
        for gpu, (job, child) in list(self.busy.items()):
            code = child.ended()
            if code is not None:
                del self.busy[gpu]
                say(f"{'the statistics' if job is None else job.name} ended with code {code}")
                self.failed += [job] if code and job else []

    @contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        """As TERM, for which a run saves. What this process was told to ignore (nohup) it ignores."""

        def pass_on(number: int, _: object) -> None:
            self.caught.append(number)
            for _, child in list(self.busy.values()):
                child.process.terminate()

        numbers = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
        earlier = [signal.signal(number, pass_on) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, earlier, strict=True):
                signal.signal(number, handler)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def gather_statistics(runs: Runs, gpu: str) -> None:
    """Of the data, once, before all runs: each would make them else."""
    tvmatch = shlex.split(os.environ.get("TVMATCH", "python3 -m tvmatch"))
    command = [*tvmatch, "statistics", runs.inputs[0], str(runs.statistics), "--features", runs.inputs[1]]
    runs.start(None, gpu, [*command, "--keep", os.environ.get("KEEP", "50000")], {})
    while runs.busy:
        runs.collect()
        time.sleep(0.2)


def run_all(runs: Runs, gpus: list[str]) -> None:
    """Each run on a GPU as soon as one is free and its average and w are known."""
    total, begun = len(runs.waiting), 0
    while (runs.waiting and not runs.caught) or runs.busy:
        runs.collect()
        for job in [job for job in runs.waiting if runs.hopeless(job)]:
            say(f"{job.name} is not begun: {runs.firsts[job.series].name} has chosen no average and w for it")
            runs.waiting.remove(job)
            runs.failed.append(job)
        for gpu in [gpu for gpu in gpus if gpu not in runs.busy]:
            ready = [(job, pair) for job in runs.waiting if (pair := runs.pair(job)) is not None]
            if ready and not runs.caught:
                job, pair = ready[0]
                begun += 1
                at = f", scored at average and w {pair}" if pair else ""
                say(f"{job.name} on GPU {gpu} ({begun} of {total}{at}): {runs.out / job.name}.log")
                runs.begin(job, gpu, pair)
        time.sleep(0.2)


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


def devices(numbers: list[int]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES says of each GPU; `ValueError` for one that is not among them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        if min(numbers) < 0:
            raise ValueError(f"--gpus {min(numbers)}: GPUs are counted from 0")
        return [str(number) for number in numbers]
    names = visible.split(",") if visible else []
    if not all(0 <= number < len(names) for number in numbers):
        raise ValueError(f"--gpus {' '.join(map(str, numbers))}: CUDA_VISIBLE_DEVICES={visible!r} has {len(names)}")
    return [names[number] for number in numbers]


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
    if "evaluate" not in os.environ.get("STAGES", "train evaluate").split():
        parser.error(f"STAGES={os.environ['STAGES']!r} scores nothing, and seeds wait for what the first is scored at")
    for name in ("objectives", "seeds", "gpus"):
        values = getattr(given, name)
        if len(set(values)) < len(values):
            parser.error(f"--{name} names one twice: {' '.join(map(str, values))}")
    for path in (given.data, given.features):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    try:
        given.seconds, given.devices = seconds_given(), devices(given.gpus)
    except ValueError as error:
        parser.error(str(error))
    return given


def locked(folder: Path, patience: float = 3) -> int | None:
    """A descriptor that holds a folder, or None if another does. All that is started holds it too, so that what a
    killed command leaves behind is noticed; after an ordinary end it is a recipe's last sleep of a second."""
    lock = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                return None
        time.sleep(0.1)


def main() -> int:
    given = options()
    out = given.out.resolve()
    (out / "results").mkdir(parents=True, exist_ok=True)
    lock = locked(out)
    if lock is None:
        print(f"{out} is in use: this command, or a run that one before it began, still works there")
        return 2
    # the first seeds of all methods before the others, which wait for what those choose
    jobs = [Job(objective, seed, given.seconds) for seed in given.seeds for objective in given.objectives]
    runs = Runs(out, [str(path.resolve()) for path in (given.data, given.features)], jobs, lock)
    with runs.passing_signals_on():
        if not runs.statistics.exists():
            gather_statistics(runs, given.devices[0])
        if not runs.caught and not runs.statistics.exists():
            return 1
        run_all(runs, given.devices)
    (out / "results" / "table.md").write_text(table_of_means(out / "results"))
    print(f"\n{table_of_means(out / 'results')}\n{out / 'results'}")
    return 128 + runs.caught[0] if runs.caught else int(bool(runs.failed))


if __name__ == "__main__":
    raise SystemExit(main())
