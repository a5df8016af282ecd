"""The runs of `runs/cifar10_1gpu.sh` that are committed, read from benchmarks/results/cifar10/METHOD_SECONDSs_seedN."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

NAMES = {
    "tvm": "TVM",
    "mean_flow": "MeanFlow",
    "consistency_training": "consistency training",
    "inductive_moment_matching": "inductive moment matching",
    "flow_matching": "flow matching",
}
OBJECTIVES = {"tvm": "terminal-velocity"}  # of folder names that are not the objective's own
FOLDER = re.compile(r"(?P<method>\w+)_(?P<seconds>\d+)s_seed(?P<seed>\d+)")
FIRST = 20  # steps at which the recipe has its first report: everything is compiled, loaded and recorded by then


@dataclass(frozen=True)
class Phase:
    """What one process trained: its steps, pictures a second once it ran (half of all reports were faster), and seconds
    of its own clock, which starts after Python has: until everything was compiled, and in all."""

    steps: int
    images_per_second: float
    first: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """One training and what `tvmatch evaluate` measured of it, None where it was not run."""

    method: str
    seconds: int
    seed: int
    wall: int
    network: str
    optimizer: str
    jumps: str
    guidance: str
    batch: int
    commit: str
    steps: tuple[int, ...]  # of each phase, as it said at its end
    phases: tuple[Phase, ...]  # empty where the tables of metrics were lost
    scored: dict[str, Any] | None
    whole: tuple[dict[str, Any], ...]  # rows of 50,000 samples
    tradeoff: dict[str, Any] | None
    choices: tuple[dict[str, Any], ...]
    before: tuple[str, dict[str, Any]] | None  # commit and 20,000 samples of the same seed, trained before: `earlier/`

    @property
    def recipe(self) -> str:
        """What a run was given besides the recipe's defaults, in words."""
        given = [{"adamw": "AdamW", "muon": "Muon"}[self.optimizer]]
        given += [] if self.jumps == "auto" else [f"{self.jumps} gaps"]
        return ", ".join([*given, f"w in [{self.guidance.replace(':', ', ')}]"])

    @property
    def name(self) -> str:
        return NAMES.get(self.method, self.method.replace("_", " "))

    def frechet(self, calls: int) -> float | None:
        """Of the 20,000 samples of so many calls."""
        return None if self.scored is None else frechet_of(self.scored, calls)

    @property
    def chosen(self) -> tuple[float, float]:
        """Evaluation average and guidance scale at which it was scored."""
        assert self.scored is not None
        return pair_of(self.scored)


def frechet_of(evaluation: dict[str, Any], calls: int) -> float | None:
    """Of so many calls, None where they were not scored."""
    return next((row["frechet"] for row in evaluation["rows"] if row["nfe"] == calls), None)


def pair_of(evaluation: dict[str, Any]) -> tuple[float, float]:
    """Its evaluation average and guidance scale."""
    return evaluation["checkpoint"]["ema"], evaluation["rows"][0]["w"]


def alike(runs: Iterable[Run], method: str) -> list[Run]:
    """The seeds of a method that were scored at the average and w of its first; a mean of others too would mix."""
    scored = [run for run in runs if run.method == method and run.scored is not None]
    return [run for run in scored if run.chosen == scored[0].chosen]


def read_phase(path: Path) -> Phase:
    """From a table of metrics."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    speeds = sorted(row["images_per_second"] for row in rows)
    if rows[0]["step"] != FIRST:
        raise ValueError(f"{path} begins with step {rows[0]['step']}, not {FIRST}.")
    last = rows[-1]
    return Phase(last["step"], speeds[len(speeds) // 2], rows[0]["training_seconds"], last["training_seconds"])


def read_run(folder: Path) -> Run:
    """One folder; `ValueError` for a name that says something else than what is in it, seed, objective or time."""
    match = FOLDER.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} should be named METHOD_SECONDSs_seedN.")

    def load(name: str) -> dict[str, Any] | None:
        path = folder / name
        return json.loads(path.read_text()) if path.exists() else None

    config = yaml.safe_load((folder / "config.yaml").read_text())
    objective = OBJECTIVES.get(match["method"], match["method"].replace("_", "-"))
    time = re.match(r"trained: (\d+) s of wall time, ([\d.]+) minutes were given", (folder / "time.txt").read_text())
    if time is None:
        raise ValueError(f"{folder}/time.txt should say how long the run trained, as the recipe writes it.")
    for what, said, held in (
        ("seed", int(match["seed"]), config["seed"]),
        ("objective", objective, config["objective"]),
        ("seconds", int(match["seconds"]), round(60 * float(time[2]))),
    ):
        if said != held:
            raise ValueError(f"{folder} holds another {what}: {held}, where its name says {said}.")
    steps = re.findall(r"/(?:warm|run): (\d+) steps,", (folder / "train.log").read_text())
    tables = [folder / f"{name}_metrics.jsonl" for name in ("warm", "run")]
    phases = tuple(read_phase(path) for path in tables if path.exists())
    choices = tuple(json.loads(path.read_text()) for path in sorted(folder.glob("choose_*.json")))
    scored, tradeoff = load("evaluation_20000.json"), load("tradeoff.json")
    evaluations = [json.loads(path.read_text()) for path in sorted(folder.glob("evaluation*.json"))]
    before = load("earlier/evaluation_20000.json")
    if before is not None:
        before = (folder / "earlier" / "commit.txt").read_text().strip(), before
    whole = [{"ema": e["checkpoint"]["ema"], **row} for e in evaluations if e["samples"] == 50_000 for row in e["rows"]]
    return Run(
        match["method"], int(match["seconds"]), int(match["seed"]), int(time[1]), config["network"],
        config.get("optimizer", "adamw"), config.get("jumps", "auto"), config["guidance"], config["batch_size"],
        (folder / "commit.txt").read_text().strip(), tuple(map(int, steps)), phases, scored, tuple(whole), tradeoff,
        choices, before,
    )  # fmt: skip


def read_runs(results: Path) -> list[Run]:
    """All of them: by seconds, then in the order of `NAMES`, then by seed."""
    order = list(NAMES)
    runs = [read_run(folder) for folder in results.iterdir() if folder.is_dir()]
    return sorted(runs, key=lambda run: (run.seconds, order.index(run.method) if run.method in order else 99, run.seed))
