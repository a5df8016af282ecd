"""The folder of a run: who may write into it, what is continued, and its metrics file.

RUN/config.yaml  RUN/metrics.jsonl  RUN/tensorboard/  RUN/samples/  RUN/checkpoints/
"""

import contextlib
import dataclasses
import difflib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tvmatch.files import locked, write_text
from tvmatch.training.checkpoint import checkpoint_path, last_checkpoint, list_files, read_header, step_of
from tvmatch.training.config import TrainConfig, from_yaml, to_yaml

CONFIG = "config.yaml"
CURRICULA = ("alpha-flow", "consistency-training")  # what they teach depends on the share of the training that is done
UNFINISHED = ".config.yaml.tmp"  # left by a start that was killed while it wrote config.yaml

# What a continued run may change: how long it goes on, what it reports, where it runs
MAY_CHANGE = frozenset(
    {
        "run",
        "steps",
        "minutes",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "keep_checkpoints",
        "max_skipped",
        "device",
        "strict",
        "precision",
        "compile",
        "graphs",
        "recompute",
        "strategy",
        "fsdp_gather",
        "accumulate",
    }
)


class RunFolderError(ValueError):
    """A run folder that cannot be used; nothing in it was touched."""


class RunCompleteError(RunFolderError):
    """A run that has nothing left to train."""


def open_run(config: TrainConfig) -> Path | None:
    """Find the checkpoint from which the run in this folder continues; None for a fresh start. Nothing is written.

    `RunFolderError` if the folder holds something else, a run with other options, or if another process trains there;
    `RunCompleteError` if it holds this run, complete; `CheckpointError` if its newest checkpoint is not whole.
    """
    run = config.run
    if run.exists() and not run.is_dir():
        raise RunFolderError(f"{run} is a file; choose another --run.")
    if not run.exists() or all(entry.name == UNFINISHED for entry in run.iterdir()):
        return None
    with locked(run, _busy(run)):
        return _continued(config)


def _busy(run: Path) -> RunFolderError:
    return RunFolderError(f"{run}: another process trains in it; choose another --run.")


def _continued(config: TrainConfig) -> Path | None:
    """The same, in a folder that is there and that nobody else writes."""
    run = config.run
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
    last = last_checkpoint(run)
    if last is None and list_files(run):
        raise RunFolderError(
            f"{run} holds checkpoints of an earlier version ({list_files(run)[-1].name}), which can be sampled but not "
            "continued. Choose another --run."
        )
    if last is None:
        return None
    step = step_of(last)
    if step >= config.steps:
        raise RunCompleteError(
            f"{run} already holds this run, complete with {step} steps. Choose another --run, or give --steps "
            f"above {step} to continue it."
        )
    return last


def other_shares(config: TrainConfig, step: int, share: int) -> str | None:
    """A sentence for a run that continues after `step` with other shares of its batch, where that makes it another
    training. `share`: how many samples each process and micro-step gets now; its checkpoint says what it was.

    None for all methods but inductive moment matching, which compares samples of a class within a share; where there
    are no classes; for a run that only begins; and for checkpoints of earlier versions, which do not say their share.
    """
    if step == 0 or config.objective != "inductive-moment-matching":
        return None
    before = read_header(checkpoint_path(config.run, step))
    earlier = before.get("share")
    if not before.get("class_names") or earlier in (None, share):
        return None
    return (
        f"inductive-moment-matching compares samples within the {share} of batch_size={config.batch_size} that each "
        f"process and micro-step gets; until now that was within {earlier}. From here on this is another training: to "
        f"go on with the same one, give the number of processes and --accumulate with which each gets {earlier} "
        "(docs/distributed.md)."
    )


def other_length(config: TrainConfig) -> str | None:
    """A sentence for a run that is about to continue with another length, where a step's learning rate or curriculum
    depends on it; None where none does."""
    earlier = read_config(config.run)
    lengths = [f"--minutes {c.minutes:g}" if c.minutes is not None else f"--steps {c.steps}" for c in (earlier, config)]
    curriculum = config.objective in CURRICULA
    if lengths[0] == lengths[1] or not (config.decay_share or curriculum):
        return None
    follows = ["the learning rate"] if config.decay_share else []
    follows += [f"the curriculum of {config.objective}"] if curriculum else []
    return (
        f"{lengths[1]} where this run had {lengths[0]}: the new length holds for {' and '.join(follows)} from here on. "
        "That is another training than either length gives alone (docs/distributed.md)."
    )


@contextlib.contextmanager
def claim_run(config: TrainConfig, before: Path | None = None) -> Iterator[None]:
    """Make the run's folder, keep other processes from training in it, and write its config.yaml.

    `before` is what `open_run` found. `RunFolderError` if that has changed meanwhile, if another process trains there,
    or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            config.run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(config.run, _busy(config.run)))
            if (config.run / CONFIG).exists() and _continued(config) != before:
                raise RunFolderError(
                    f"{config.run}: another process has trained in it since this one started. Run the same command "
                    "again to continue from there."
                )
            write_text(config.run / "config.yaml", to_yaml(config))
        except OSError as error:
            raise RunFolderError(
                f"cannot write into {config.run}: {error.strerror or error}. Free some space or make it writable, or "
                "choose another --run."
            ) from error
        yield


def read_config(run: Path) -> TrainConfig:
    """The configuration of the run in a folder; `RunFolderError` if it holds none."""
    path = run / CONFIG
    if not path.is_file():
        if not run.exists():
            there = f"there is no folder {run}"
        else:
            there = f"{run} " + (
                "holds no config.yaml, so it is not a run of tvmatch"
                if run.is_dir()
                else "is a file, not a run of tvmatch"
            )
        near = _run_near(run)
        raise RunFolderError(f"{there}; {f'did you mean {near}?' if near else 'choose another folder.'}")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise RunFolderError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): damaged, or saved in another "
            "encoding. Save it in UTF-8, or choose another folder."
        ) from error
    return from_yaml(text, str(path))


def _run_near(path: Path) -> Path | None:
    """The run that was perhaps meant: the one that `path` lies in, the only one in it, or one beside it that is called
    nearly so."""
    for parent in list(path.parents)[:3]:
        if (parent / CONFIG).is_file():
            return parent
    with contextlib.suppress(OSError, IndexError):
        inside = [config.parent for config in itertools.islice(path.glob(f"*/{CONFIG}"), 2)]
        if len(inside) == 1:
            return inside[0]
        beside = {config.parent.name: config.parent for config in path.parent.glob(f"*/{CONFIG}")}
        return beside[difflib.get_close_matches(path.name, beside, n=1)[0]]
    return None


class MetricsFile:
    """RUN/metrics.jsonl: one JSON object a line, in order of steps; lines after `step` are dropped when it opens,
    because a resumed run writes them again. `dropped` is the last step of these, 0 where there were none."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
        steps = [_step_of(line) for line in lines]
        self.dropped = max((each for each in steps if each is not None and each > step), default=0)
        kept = [line for line, each in zip(lines, steps, strict=True) if each is not None and each <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))

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
