"""The folder of a run: who may write into it, what is continued, and its metrics file.

RUN/config.yaml  RUN/metrics.jsonl  RUN/tensorboard/  RUN/samples/  RUN/checkpoints/
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tvmatch.training.checkpoint import list_checkpoints
from tvmatch.training.config import TrainConfig, from_yaml, to_yaml

# What a continued run may change: how long it goes on, what it reports, where it runs
MAY_CHANGE = frozenset(
    {"run", "steps", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "device", "strict"}
)


class RunFolderError(ValueError):
    """A run folder that cannot be used; nothing in it was touched."""


def open_run(config: TrainConfig) -> Path | None:
    """Make the run's folder, or find the checkpoint from which the same command continues.

    Returns that checkpoint, or None for a fresh start. `RunFolderError` if the folder holds something else, a run
    with other options, or a run that is complete.
    """
    run = config.run
    if run.exists() and not run.is_dir():
        raise RunFolderError(f"{run} is a file; choose another --run.")
    if not run.exists() or not any(run.iterdir()):
        try:
            run.mkdir(parents=True, exist_ok=True)
            _write_config(config)
        except OSError as error:
            raise RunFolderError(f"cannot write into {run}: {error.strerror}; choose another --run.") from error
        return None
    earlier = read_config(run)
    for field in dataclasses.fields(config):
        if field.name in MAY_CHANGE:
            continue
        old, new = getattr(earlier, field.name), getattr(config, field.name)
        if old != new:
            raise RunFolderError(
                f"{run} already holds a run with {field.name}={old}, and this command says {new}. Choose another "
                "--run, or give the same options to continue that run."
            )
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        _write_config(config)
        return None
    step = int(checkpoints[-1].stem.removeprefix("step_"))
    if step >= config.steps:
        raise RunFolderError(
            f"{run} already holds this run, complete with {step} steps. Choose another --run, or give --steps "
            f"above {step} to continue it."
        )
    _write_config(config)
    return checkpoints[-1]


def read_config(run: Path) -> TrainConfig:
    """The configuration of the run in a folder; `RunFolderError` if it holds none."""
    path = run / "config.yaml"
    if not path.is_file():
        there = "is not a folder" if not run.is_dir() else "holds no config.yaml, so it is not a run of tvmatch"
        raise RunFolderError(f"{run} {there}; choose another folder.")
    return from_yaml(path.read_text(), str(path))


def _write_config(config: TrainConfig) -> None:
    path = config.run / "config.yaml"
    temporary = path.with_name(".config.yaml.tmp")
    temporary.write_text(to_yaml(config))
    temporary.replace(path)


class MetricsFile:
    """RUN/metrics.jsonl: one JSON object a line, in order of steps; lines after `step` are dropped when it opens,
    because a resumed run writes them again."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(path)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line."""
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")


def _step_of(line: str) -> int | None:
    """The step of a line; None for a line that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
