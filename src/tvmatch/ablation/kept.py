"""Finished cells as files: FOLDER/cells/KEY.json, and whether what is there still counts.

A key knows the paths among a cell's options, not what lies there. So a finished cell says what it was trained on, and
counts only while the paths lead to the same.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvmatch.ablation.study import Cell
from tvmatch.ablation.tasks import open_task
from tvmatch.data.source import Source
from tvmatch.files import write_text
from tvmatch.metrics.features import sha256_of
from tvmatch.training.trained import load_run

Result = dict[str, Any]
Inputs = dict[str, str]  # option that is a path -> hash of what lies there
NEEDED = {  # fields of a result that others read -> their types
    "task": str,
    "seed": int,
    "options": dict,
    "diverged": str | None,
    "rows": list,
    "figures": dict,
    "seconds": int | float,
}


def cell_path(cell: Cell, folder: Path) -> Path:
    """The file of a cell's result."""
    return folder / "cells" / f"{cell.key}.json"


def finished(cell: Cell, folder: Path) -> Result | None:
    """The result of a cell that is done; None if it is not, or its file was damaged."""
    try:
        found = json.loads(cell_path(cell, folder).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(found, dict) and found.get("key") == cell.key and isinstance(found.get("inputs", {}), dict)
    whole = whole and all(name in found and isinstance(found[name], kind) for name, kind in NEEDED.items())
    return found if whole else None


def keep_result(cell: Cell, folder: Path, result: Mapping[str, Any]) -> None:
    """Write a cell's result, whole or not at all."""
    path = cell_path(cell, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result) + "\n")


def discard(cell: Cell, folder: Path) -> None:
    """Remove a result and, before it, the run that was kept: it would be taken for one of the new inputs."""
    shutil.rmtree(folder / "runs" / cell.key, ignore_errors=True)
    cell_path(cell, folder).unlink(missing_ok=True)


def inputs_of(cell: Cell, source: Source) -> Inputs:
    """What the paths of a cell's options lead to now; `source` is its data. Points are no path."""
    inputs = {"data": source.fingerprint} if cell.task == "pictures" else {}
    if cell.config.initial is not None:
        inputs["initial"] = sha256_of(load_run(Path(cell.config.initial)).checkpoint)
    return inputs


def changed_inputs(results: Mapping[str, Result], cells: Mapping[str, Cell]) -> dict[str, str]:
    """Keys of `results` that do not count any more, and in words which path leads elsewhere. Results of before hashes
    were kept count."""
    now: dict[tuple[Any, ...], Inputs] = {}  # opening data takes time, and many cells share theirs
    changed = {}
    for key, result in results.items():
        then, cell = result.get("inputs"), cells[key]
        if not then:
            continue
        config = cell.config
        what = (cell.task, config.data, config.image_size, config.strict, config.crop, config.initial)
        if what not in now:
            source = open_task(cell.task, config)
            now[what] = inputs_of(cell, source)
            source.close()
        if names := [name for name in now[what] if now[what][name] != then.get(name)]:
            changed[key] = ", ".join(f"{name}={getattr(config, name)}" for name in names)
    return changed
