"""One plain safetensors file of a run's averaged weights: for sampling elsewhere, and for other programs.

Its tensors are named `ema.0.999.network.patches.weight` and so on; the header holds, as JSON under `tvmatch`, what a
checkpoint says of itself. `tvmatch sample FILE` reads it.
"""

import json
from pathlib import Path

from tvmatch.training.checkpoint import EXPORT_FORMAT, CheckpointError, last_checkpoint, read_checkpoint, read_header
from tvmatch.training.header import ema_prefix
from tvmatch.training.run_folder import read_config
from tvmatch.training.safetensors_file import write_safetensors
from tvmatch.training.trained import averages_in, choose_average


def check_replaceable(out: Path) -> None:
    """Raise `ValueError` where another file than an earlier export would be replaced."""
    if not out.exists():
        return
    try:
        read_header(out)
    except CheckpointError as error:
        raise ValueError(f"--out {out} holds something else, and is not overwritten; choose another name.") from error


def export_weights(run: Path, out: Path, ema: float | None = None) -> Path:
    """Write the averaged weights of a run's last checkpoint, of any number of ranks, into the file `out`; returns the
    checkpoint. `ema` chooses one average by its decay (None: all of them).

    Raises `RunFolderError` or `CheckpointError` for a run that will not do, `OSError` if the disk refuses; a file that
    was there before then stays.
    """
    read_config(run)
    path = last_checkpoint(run)
    if path is None:
        raise CheckpointError(f"{run} has no checkpoint yet; train it first: tvmatch train --run {run}")
    prefix = "ema." if ema is None else ema_prefix(choose_average(path, averages_in(path), ema))
    tensors = {prefix + name: value for name, value in read_checkpoint(path, prefix).items()}
    metadata = {"tvmatch": json.dumps(read_header(path) | {"format": EXPORT_FORMAT})}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        write_safetensors(tensors, temporary, metadata)
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
