"""What an ablation varies: variants of the training options, their seeds, and one cell for each training run."""

import dataclasses
import difflib
import hashlib
import itertools
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tvmatch.training.config import TrainConfig, to_yaml
from tvmatch.training.preview import default_w

TaskName = Literal["points", "pictures"]
Changes = dict[str, Any]  # fields of `TrainConfig` and their values

# what the command itself decides, or what cannot change a result
NOT_VARIED = {
    "run": "--out names the folder",
    "seed": "--seeds says how many there are",
    "evaluation_ema": "it is a list; --set evaluation_ema=0.999 gives one",
    **dict.fromkeys(
        ("log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "strategy"), "the ablation sets it"
    ),
}


@dataclass(frozen=True)
class Study:
    """Variants that are compared: name -> changes of the task's options. `scales` are the guidance scales at which
    each is judged (empty: the one that it was trained for)."""

    title: str
    variants: dict[str, Changes]
    task: TaskName = "points"
    scales: tuple[float, ...] = ()
    base: Changes = dataclasses.field(default_factory=dict)  # options that all variants share


@dataclass(frozen=True)
class Cell:
    """One training run: a task, its options, and how it is judged."""

    task: TaskName
    config: TrainConfig  # whose `run` plays no part
    scales: tuple[float, ...]  # guidance scales
    calls: tuple[int, ...]
    samples: int

    @property
    def key(self) -> str:
        """Names the run by what can change its result: equal keys, equal results."""
        options = to_yaml(dataclasses.replace(self.config, run=Path("run")))
        judged = (self.task, self.scales, self.calls, self.samples)
        return hashlib.sha256(f"{judged}\n{options}".encode()).hexdigest()[:16]


def cells_of(
    study: Study, base: TrainConfig, seeds: int, calls: tuple[int, ...], samples: int
) -> list[tuple[str, int, Cell]]:
    """(variant, seed, cell) of a whole study, the seeds outermost: what is stopped early has whole seeds."""
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    for name, values in (("nfe", calls), ("w", study.scales)):  # a row twice would count as two seeds
        if len(set(values)) != len(values):
            raise ValueError(f"{name} must be given without repetition, got {list(values)}.")
    rows = []
    for seed, (name, changes) in itertools.product(range(seeds), study.variants.items()):
        config = dataclasses.replace(base, **{**study.base, **changes, "seed": seed})
        scales = study.scales or (default_w(config.guidance, 1),)  # both tasks have classes
        rows.append((name, seed, Cell(study.task, config, scales, calls, samples)))
    return rows


def check_shared(name: str, study: Study, options: Changes) -> None:
    """`ValueError` for an option of every run that the study of this name decides itself."""
    for option, value in options.items():
        varied = any(option in changes for changes in study.variants.values())
        if varied or option in study.base:
            raise ValueError(
                f"--set {option}={_shown(value)}: the study {name!r} {'varies' if varied else 'sets'} it; leave it out."
            )


def parse_change(text: str) -> tuple[str, list[Any]]:
    """`name=value,value` -> the option's name and its values, of its own type."""
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    hints = typing.get_type_hints(TrainConfig)
    if name not in hints:
        near = difflib.get_close_matches(name, hints, n=1)
        raise ValueError(f"no training option is called {name!r}" + (f"; did you mean {near[0]}?" if near else "."))
    if not equals or not values.strip():
        raise ValueError(f"{text!r}: give {name}=VALUE or {name}=VALUE,VALUE.")
    if name in NOT_VARIED and not (name == "evaluation_ema" and "," not in values):
        raise ValueError(f"{name} cannot be varied: {NOT_VARIED[name]}.")
    return name, [_value(name, hints[name], value.strip()) for value in values.split(",")]


TRUE, FALSE = {"true", "on", "yes"}, {"false", "off", "no"}
KINDS = {
    bool: "on or off",
    int: "a whole number",
    int | None: "a whole number or none",
    float | None: "a number or none",
}


def _value(name: str, hint: Any, text: str) -> Any:
    """One value of an option; what its range allows is `TrainConfig`'s to say."""
    try:
        if hint is bool:
            if text.lower() not in TRUE | FALSE:
                raise ValueError
            return text.lower() in TRUE
        if name == "evaluation_ema":
            return (float(text),)
        if hint in (int, float):
            return hint(text)
        if hint in (int | None, float | None):
            return None if text.lower() == "none" else typing.get_args(hint)[0](text)
    except ValueError:
        raise ValueError(f"{name} must be {KINDS.get(hint, 'a number')}, got {text!r}.") from None
    return text


def grid(varied: list[tuple[str, list[Any]]]) -> dict[str, Changes]:
    """Every combination of the values, named by them."""
    names = [name for name, _ in varied]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is varied twice; give its values in one --vary.")
    for name, values in varied:
        if len(set(values)) != len(values):
            raise ValueError(f"{name} must be given without repetition, got {list(values)}.")
    combinations = [dict(zip(names, values, strict=True)) for values in itertools.product(*(v for _, v in varied))]
    return {", ".join(f"{name}={_shown(value)}" for name, value in row.items()): row for row in combinations}


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
