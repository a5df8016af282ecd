"""Checkpoints: one safetensors file each, written atomically, checked when read. No pickle.

    RUN/checkpoints/step_00000300.safetensors

holds every tensor of the training state under a prefix (`flow.`, `target.`, `ema.0.999.`, `optimizer.`), and JSON
in its header: format version, step, network configuration, parameterisation, and the data's fingerprint.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 1
FOLDER = "checkpoints"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or used here; the message says which and what to do."""


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run / FOLDER / f"step_{step:08d}.safetensors"


def list_checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first; half-written temporary files do not count."""
    return sorted((run / FOLDER).glob("step_*.safetensors"))


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint whole or not at all, then delete all but the last `keep`.

    The bytes go to a temporary file beside it and reach the disk before it takes its name, so a full disk or a kill
    leaves the checkpoints that were there. Raises `CheckpointError` if the disk refuses.
    """
    metadata = {"tvmatch": json.dumps({"format": FORMAT, **header})}
    content = save({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, metadata=metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = list_checkpoints(path.parent.parent)
        last = f"The last good checkpoint is {kept[-1]}." if kept else "There is no earlier checkpoint."
        raise CheckpointError(
            f"cannot save {path} ({len(content) / 2**20:.1f} MiB): {error.strerror or error}. {last} "
            "Free some space or make the folder writable, then run the same command again to continue."
        ) from error
    for old in list_checkpoints(path.parent.parent)[:-keep]:
        old.unlink(missing_ok=True)
    for stale in path.parent.glob(".step_*.tmp"):
        stale.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable (POSIX: the entry belongs to the folder)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}). It was cut short, or is of another format "
            "(a pickle, perhaps, which tvmatch never loads). Use an earlier checkpoint: "
            f"{', '.join(p.name for p in list_checkpoints(path.parent.parent) if p != path) or 'none is left'}."
        ) from error


def _header(file: Any, path: Path) -> dict[str, Any]:
    try:
        header = json.loads((file.metadata() or {})["tvmatch"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of tvmatch.") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {header.get('format')}; this version of tvmatch reads {FORMAT}.")
    return header
