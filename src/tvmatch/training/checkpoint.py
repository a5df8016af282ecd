"""Checkpoints: one safetensors file each, written atomically, checked when read. No pickle.

    RUN/checkpoints/step_00000300.safetensors

holds every tensor of the training state under a prefix (`flow.`, `target.`, `ema.0.999.`, `optimizer.`), and JSON
in its header: format version, step, network configuration, parameterisation, and the data's fingerprint.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tvmatch.files import replacing

FORMAT = 1
FOLDER = "checkpoints"
NAME = re.compile(r"step_(\d+)\.safetensors")
# What a header holds besides the format
HEADER = ("step", "network", "scaled", "objective", "guidance", "class_names", "data")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or used here; the message says which and what to do."""


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run / FOLDER / f"step_{step:08d}.safetensors"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not named like a checkpoint, step_00000300.safetensors.")
    return int(match[1])


def list_checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first; temporary files and files of other names do not count."""
    return sorted((path for path in (run / FOLDER).glob("step_*") if NAME.fullmatch(path.name)), key=step_of)


def last_checkpoint_text(run: Path) -> str:
    """The sentence of an error message that says what is left."""
    kept = list_checkpoints(run)
    return f"The last good checkpoint is {kept[-1]}." if kept else "There is no earlier checkpoint."


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint whole or not at all, then delete all but the last `keep`.

    The bytes reach the disk before they take the checkpoint's name, so a full disk or a kill leaves the checkpoints
    that were there. Raises `CheckpointError` if the disk refuses.
    """
    metadata = {"tvmatch": json.dumps({"format": FORMAT, **header})}
    content = save({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, metadata=metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(".step_*.tmp"):  # of a killed save: it takes the room that this one needs
            stale.unlink(missing_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise CheckpointError(
            f"cannot save {path} ({len(content) / 2**20:.1f} MiB): {error.strerror or error}. "
            f"{last_checkpoint_text(path.parent.parent)} "
            "Free some space or make the folder writable, then run the same command again to continue."
        ) from error
    for old in list_checkpoints(path.parent.parent)[:-keep]:
        old.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint's header; raises `CheckpointError` if the file is not a whole checkpoint of ours."""
    with _open(path) as file:
        return _header(file, path)


def read_checkpoint(path: Path, prefix: str = "", device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, named without it."""
    with _open(path) as file:
        _header(file, path)
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
        return {name[len(prefix) :]: file.get_tensor(name).to(device) for name in names}


def read_names(path: Path, prefix: str = "") -> list[str]:
    """The names of the tensors that start with `prefix`."""
    with _open(path) as file:
        _header(file, path)
        return [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}.") from error
    except (SafetensorError, OSError) as error:
        others = [other.name for other in list_checkpoints(path.parent.parent) if other != path]
        remedy = f"Delete it to go back to {others[-1]}" if others else "No other checkpoint is left"
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}). It was cut short, or is of another format "
            f"(a pickle, perhaps, which tvmatch never loads). {remedy}."
        ) from error


def _header(file: Any, path: Path) -> dict[str, Any]:
    try:
        header = json.loads((file.metadata() or {})["tvmatch"])
        version = header["format"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of tvmatch.") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}; this version of tvmatch reads {FORMAT}.")
    for name in HEADER:
        if name not in header:
            raise CheckpointError(f"the header of {path} lacks {name!r}; it was not written by tvmatch.")
    return header
