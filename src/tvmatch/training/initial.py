"""A run that begins with the weights of another (`--initial`): what they share, and what is told where they differ."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmatch.flow_map import FlowMap
from tvmatch.training.checkpoint import CheckpointError, read_header
from tvmatch.training.config import TrainConfig
from tvmatch.training.trained import load_run, weights_of


def load_initial(flow: FlowMap, run: Path, class_names: Sequence[str]) -> None:
    """Copy the slowest averaged weights of a trained run; `CheckpointError` if it is of another architecture, or knows
    the classes of this training, `class_names`, under other numbers."""
    trained = load_run(run)
    theirs, ours = (_architecture(each) for each in (trained.flow, flow))
    if theirs != ours:
        raise CheckpointError(
            f"--initial {run} is of another architecture: {theirs[0]}, scaled {theirs[1]}; not {ours[0]}, scaled "
            f"{ours[1]}."
        )
    _check_numbers(trained.class_names, class_names, run)
    flow.load_state_dict(trained.flow.state_dict())


def other_start(config: TrainConfig, header: dict[str, Any]) -> str | None:
    """A sentence for a training, with the header of its checkpoints, that begins with weights of other classes or of
    latents of another codec: its classes begin with what others of the same number have learned. None where it does
    not."""
    if config.initial is None:
        return None
    before = read_header(weights_of(Path(config.initial)))
    told = [_other_classes(before["class_names"], header["class_names"])]
    spaces = [each.get("latent_space") for each in (before, header)]
    if all(spaces) and spaces[0]["codec_hash"] != spaces[1]["codec_hash"]:
        told.append(f"it drew latents of {spaces[0]['codec']}, and these are of {spaces[1]['codec']}")
    told = [words for words in told if words]
    return f"--initial {config.initial} learned other data: {'; '.join(told)}." if told else None


def _architecture(flow: FlowMap) -> tuple[Any, bool]:
    """What two flow maps must share for weights of one to fit the other: not how their first weights were made."""
    config = getattr(flow.network, "config", None)
    if hasattr(config, "initialisation"):
        config = dataclasses.replace(config, initialisation=TrainConfig().initialisation)
    return config, flow.scaled


def _check_numbers(theirs: Sequence[str], ours: Sequence[str], run: Path) -> None:
    """The same classes in another order: no class would begin as itself, and nothing would show it."""
    if list(theirs) == list(ours) or sorted(theirs) != sorted(ours):
        return
    moved = next(name for name, other in zip(ours, theirs, strict=True) if name != other)
    raise CheckpointError(
        f"--initial {run} has the same classes under other numbers: {moved!r} is {list(theirs).index(moved)} there and "
        f"{list(ours).index(moved)} here. Bring the data's classes into its order: {', '.join(map(repr, theirs[:5]))}"
        f"{', ...' if len(theirs) > 5 else ''}."
    )


def _other_classes(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    others = [(k, there, here) for k, (there, here) in enumerate(zip(theirs, ours, strict=False)) if there != here]
    if not others:
        return None
    number, there, here = others[0]
    return f"{len(others)} of {len(ours)} classes are others (number {number} was {there!r} and is {here!r} now)"
