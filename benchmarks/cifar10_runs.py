"""The runs of `runs/cifar10_1gpu.sh` that are committed, read from benchmarks/results/cifar10/METHOD_SECONDSs_seedN."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = {"tvm": "TVM", "mean_flow": "MeanFlow", "flow_matching": "flow matching"}
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
    phases: tuple[Phase, ...]
    scored: dict[str, Any] | None
    tradeoff: dict[str, Any] | None
    choices: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        return NAMES.get(self.method, self.method.replace("_", " "))

    def frechet(self, calls: int) -> float | None:
        """Of the 20,000 samples of so many calls."""
        rows = [] if self.scored is None else self.scored["rows"]
        return next((row["frechet"] for row in rows if row["nfe"] == calls), None)

    @property
    def chosen(self) -> tuple[float, float]:
        """Evaluation average and guidance scale at which it was scored."""
        assert self.scored is not None
        return self.scored["checkpoint"]["ema"], self.scored["rows"][0]["w"]


def read_phase(path: Path) -> Phase:
    """From a table of metrics."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    speeds = sorted(row["images_per_second"] for row in rows)
    if rows[0]["step"] != FIRST:
        raise ValueError(f"{path} begins with step {rows[0]['step']}, not {FIRST}.")
    last = rows[-1]
    return Phase(last["step"], speeds[len(speeds) // 2], rows[0]["training_seconds"], last["training_seconds"])


def read_run(folder: Path) -> Run:
    """One folder; `ValueError` for a name that says something else than what is in it."""
    match = FOLDER.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} should be named METHOD_SECONDSs_seedN.")

    def load(name: str) -> dict[str, Any] | None:
        path = folder / name
        return json.loads(path.read_text()) if path.exists() else None

    config = (folder / "config.yaml").read_text()
    if f"\nseed: {match['seed']}\n" not in config:
        raise ValueError(f"{folder} holds another seed: see its config.yaml.")
    wall = re.match(r"trained: (\d+) s", (folder / "time.txt").read_text())
    assert wall is not None
    tables = [folder / f"{name}_metrics.jsonl" for name in ("warm", "run")]
    phases = tuple(read_phase(path) for path in tables if path.exists())
    choices = tuple(json.loads(path.read_text()) for path in sorted(folder.glob("choose_*.json")))
    scored, tradeoff = load("evaluation_20000.json"), load("tradeoff.json")
    return Run(
        match["method"], int(match["seconds"]), int(match["seed"]), int(wall[1]), phases, scored, tradeoff, choices
    )


def read_runs(results: Path) -> list[Run]:
    """All of them: by seconds, then in the order of `NAMES`, then by seed."""
    order = list(NAMES)
    runs = [read_run(folder) for folder in results.iterdir() if folder.is_dir()]
    return sorted(runs, key=lambda run: (run.seconds, order.index(run.method) if run.method in order else 99, run.seed))
