"""Checkpoints on disk: a folder each, that appears whole or not at all, checked when read. No pickle.

    RUN/checkpoints/step_00000300/tvmatch.json             header, sizes of the files, shapes of the tensors
                                  part_00000.safetensors   what rank 0 wrote, and so on

The tensors are those of the training state, named alike for any number of ranks and any strategy: `flow.`, `target.`,
`ema.0.999.`, `optimizer.exp_avg.`. A plain safetensors file (`training/export.py`) is read by the same functions.
"""

import contextlib
import json
import math
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException

FORMAT = 2
INDEX = "tvmatch.json"  # of a checkpoint folder
EXPORT_FORMAT = 1  # of the single file, which was the only format once
FOLDER = "checkpoints"
NAME = re.compile(r"step_(\d+)(\.safetensors)?")
# What a header holds besides the format
HEADER = ("step", "network", "scaled", "objective", "guidance", "class_names", "data")
# Without a process group PyTorch warns at every save and load that there is none
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or used here; the message says which and what to do."""


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run / FOLDER / f"step_{step:08d}"


def unfinished(path: Path) -> Path:
    """The name under which a checkpoint is written."""
    return path.with_name(f".{path.name}.tmp")


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not named like a checkpoint, step_00000300.")
    return int(match[1])


def list_checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first; unfinished ones and other names do not count."""
    found = (path for path in (run / FOLDER).glob("step_*") if NAME.fullmatch(path.name) and (path / INDEX).is_file())
    return sorted(found, key=step_of)


def list_without_index(run: Path) -> list[Path]:
    """Folders with a checkpoint's name but no index, oldest first. No save leaves them: somebody deleted in them."""
    found = (path for path in (run / FOLDER).glob("step_*") if NAME.fullmatch(path.name) and path.is_dir())
    return sorted((path for path in found if not (path / INDEX).is_file()), key=step_of)


def last_checkpoint(run: Path) -> Path | None:
    """The run's newest checkpoint, None if it has none yet; `CheckpointError` if the newest is not whole: to pass over
    it in silence would be to go on with an older one than the user sees."""
    broken = list_without_index(run)  # first: a run that trains now may remove an old one after a newer is whole
    checkpoints = list_checkpoints(run)
    if broken and (not checkpoints or step_of(broken[-1]) > step_of(checkpoints[-1])):
        back = f"to {checkpoints[-1].name}" if checkpoints else "to the start"
        raise CheckpointError(f"{broken[-1]} is not whole: {INDEX} is missing. Delete it to go back {back}.")
    return checkpoints[-1] if checkpoints else None


def list_files(run: Path) -> list[Path]:
    """Checkpoints of earlier versions, oldest first: single files, which can be sampled but not continued."""
    found = (path for path in (run / FOLDER).glob("step_*.safetensors") if NAME.fullmatch(path.name))
    return sorted((path for path in found if path.is_file()), key=step_of)


def last_checkpoint_text(run: Path) -> str:
    """The sentence of an error message that says what is left."""
    kept = list_checkpoints(run)
    return f"The last good checkpoint is {kept[-1]}." if kept else "There is no earlier checkpoint."


def clear_unfinished(run: Path) -> None:
    """Remove what a killed save or a killed removal left: it takes the room that the next save needs."""
    for stale in (run / FOLDER).glob(".step_*.tmp"):
        remove(stale)


def remove(path: Path) -> None:
    """Remove a checkpoint, at no moment of which it looks whole."""
    if NAME.fullmatch(path.name) and path.is_dir():
        path = path.rename(unfinished(path))
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def prune(run: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints."""
    for old in list_checkpoints(run)[:-keep]:
        remove(old)


def read_header(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; raises `CheckpointError` if it is not a whole one of ours."""
    if path.is_dir():
        index = _read_index(path)
        return {name: value for name, value in index.items() if name not in ("files", "tensors")}
    with _open(path) as file:
        return _file_header(file, path)


def read_shapes(path: Path, prefix: str = "") -> dict[str, torch.Size]:
    """The shapes of the tensors whose names start with `prefix`, under their whole names."""
    if path.is_dir():
        saved = _read_index(path)["tensors"]
        return {name: torch.Size(saved[name]["shape"]) for name in saved if name.startswith(prefix)}
    with _open(path) as file:
        _file_header(file, path)
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
        return {name: torch.Size(file.get_slice(name).get_shape()) for name in names}


def read_checkpoint(path: Path, prefix: str = "", device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, named without it, whole and in this process."""
    if path.is_dir():
        saved = _read_index(path)["tensors"]
        tensors = _read_parts(path, {name: saved[name] for name in saved if name.startswith(prefix)})
    else:
        with _open(path) as file:
            _file_header(file, path)
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
            tensors = {name: file.get_tensor(name) for name in names}
    return {name[len(prefix) :]: value.to(device) for name, value in tensors.items()}


def load_checkpoint(path: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Fill `tensors`, whole or sharded, from a checkpoint; all ranks of `group` call it (None: this process alone)."""
    # here: it takes longer to import than sampling needs in all
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from tvmatch.training.storage import SafetensorsReader

    reader = SafetensorsReader(path, _read_index(path))
    try:
        dcp.load(dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise CheckpointError(f"{path} cannot be read: {first_failure(error)}. {_remedy(path)}") from error


def _read_parts(path: Path, saved: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that an index describes, each put together from its parts."""
    tensors: dict[str, Tensor] = {}
    parts = defaultdict(list)
    for name, tensor in saved.items():
        tensors[name] = torch.empty(tensor["shape"], dtype=getattr(torch, tensor["dtype"]))
        for chunk in tensor["chunks"]:
            place = tuple(slice(at, at + length) for at, length in zip(chunk["offset"], chunk["shape"], strict=True))
            parts[chunk["file"]].append((name, tensors[name][place]))
    for file, goals in parts.items():
        try:
            with safe_open(path / file, framework="pt") as opened:
                for name, goal in goals:
                    value = opened.get_tensor(name)
                    if (value.shape, value.dtype) != (goal.shape, goal.dtype):
                        raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, not as the index says")
                    goal.copy_(value)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path / file} cannot be read: {error}. {_remedy(path)}") from error
    return tensors


def first_failure(error: "CheckpointException") -> str:
    """Why a save or load failed, of the first rank that did."""
    rank, (cause, _) = min(error.failures.items())
    reason = (cause.strerror if isinstance(cause, OSError) else None) or f"{type(cause).__name__}: {cause}"
    return f"{reason} (rank {rank})" if rank else reason


def _read_index(path: Path) -> dict[str, Any]:
    """The index of a checkpoint folder, checked against the files that are there."""
    try:
        index = json.loads((path / INDEX).read_text("utf-8"))
        version = index["format"]
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}: it has no {INDEX}.") from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path / INDEX} is not the index of a checkpoint of tvmatch. {_remedy(path)}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}; this version of tvmatch reads {FORMAT}.")
    for name in (*HEADER, "files", "tensors"):
        if name not in index:
            raise CheckpointError(f"the index of {path} lacks {name!r}; it was not written by tvmatch.")
    with _as_damage(path):
        _check_files(path, index)
    return index


def _check_files(path: Path, index: dict[str, Any]) -> None:
    """Every file there and of its size, and every tensor covered by its parts to the last element."""
    for name, size in index["files"].items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"the index of {path} names a file elsewhere, {name!r}; nothing is read from there.")
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}: it was cut short"
            raise CheckpointError(f"{path} is not whole: {name} {what}. {_remedy(path)}")
    for name, saved in index["tensors"].items():
        covered = sum(math.prod(chunk["shape"]) for chunk in saved["chunks"])
        if covered != math.prod(saved["shape"]) or any(
            chunk["file"] not in index["files"] for chunk in saved["chunks"]
        ):
            raise CheckpointError(f"{path} is not whole: parts of {name} are missing. {_remedy(path)}")


@contextlib.contextmanager
def _as_damage(path: Path) -> Iterator[None]:
    """A value of an unexpected kind in an index is a damaged index."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"the index of {path} is damaged ({error!r}). {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    others = [other.name for other in list_checkpoints(path.parent.parent) if other != path]
    return f"Delete it to go back to {others[-1]}." if others else "No other checkpoint is left."


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}). It was cut short, or is of another format "
            f"(a pickle, perhaps, which tvmatch never loads). {_remedy(path)}"
        ) from error


def _file_header(file: Any, path: Path) -> dict[str, Any]:
    try:
        header = json.loads((file.metadata() or {})["tvmatch"])
        version = header["format"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but not one of tvmatch.") from error
    if version != EXPORT_FORMAT:
        raise CheckpointError(f"{path} has format {version}; this version of tvmatch reads files of {EXPORT_FORMAT}.")
    for name in HEADER:
        if name not in header:
            raise CheckpointError(f"the header of {path} lacks {name!r}; it was not written by tvmatch.")
    return header
