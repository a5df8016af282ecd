"""What an evaluation is of: rows of another one are never taken for its own, and never overwritten."""

import json
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvmatch import __version__
from tvmatch.metrics.kernel import SUBSETS, subset_size
from tvmatch.metrics.manifold import K_DENSITY, K_RECALL
from tvmatch.metrics.projections import DIRECTIONS
from tvmatch.provenance import code_hash

NAMES = ("path", "file", "data")  # where things lay: they are told, and may be elsewhere the next time
# what draws samples and what measures them; the commit says more, and is told beside each row
CODE = (
    *("metrics", "networks", "kernels", "data", "sampling.py", "flow_map.py", "interpolant.py", "times.py"),
    *("training/trained.py", "training/checkpoint.py", "training/header.py", "training/engine.py"),
)
# what an evaluation writes into its folder; a kill may leave hidden parts
OWN_FILES = (
    *("rows", "unfinished", "statistics.safetensors", "table.md", "tradeoff.png", "samples_*.png", "nearest_*.png"),
    ".*",
)
NEIGHBOURS = 10_000  # features of each kind for what needs neighbours: the published figures have mostly so many


def definitions(kept: int, samples: int) -> dict[str, Any]:
    """How the figures are computed of so many kept features and samples."""
    return {
        "neighbours": min(NEIGHBOURS, samples, kept),
        "authenticity_among": kept,
        "k": {"precision_recall": K_RECALL, "density_coverage": K_DENSITY},
        "kernel_subsets": [SUBSETS, subset_size(kept, samples)],
        "directions": DIRECTIONS,
        "chance": {"kernel": 0, "directions": 0, "neighbours": 0},  # seeds of what is drawn besides the samples
    }


def code() -> dict[str, Any]:
    """Versions, and the hash of what computes."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,  # the noise is of its generator
        "torchmetrics": version("torchmetrics"),
        "tvmatch": __version__,
        "code": code_hash(CODE),
    }


def require_same(out: Path, folder: Path, pins: dict[str, Any]) -> None:
    """`ValueError` if `out`, or rows in `folder`, are of an evaluation that differs in one of these pins."""
    for path in (out, *sorted((folder / "rows").glob("*.json"))):
        if not path.is_file():
            continue
        try:
            held = json.loads(path.read_text())
            held = held if path == out else held["identity"]
        except (ValueError, KeyError, TypeError):
            held = None
        if not isinstance(held, dict):
            if path == out:
                raise ValueError(f"{out} holds no evaluation, and is not overwritten; choose another --out.")
            continue  # a row that was cut short is measured again
        differences = _differences(held, json.loads(json.dumps(pins)))
        if differences:
            raise ValueError(
                f"{path} is of another evaluation, with {', '.join(differences[:3])}; it is not overwritten. Choose "
                f"another --out, or remove {out} and {folder}."
            )


def require_own_folder(out: Path, folder: Path) -> None:
    """`ValueError` if `folder`, which gets the pictures and parts of the evaluation `out`, holds what is of none: a
    run, say, or a data set."""
    try:
        held = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ValueError(f"--out {out}: {folder}, for its pictures, is a file; choose another --out.") from None
    others = [name for name in held if not any(fnmatch(name, pattern) for pattern in OWN_FILES)]
    if others:
        raise ValueError(
            f"--out {out}: {folder}, for its pictures, holds other things ({', '.join(map(repr, others[:3]))}); choose "
            "another --out."
        )


def require_in_pixels(out: Path) -> None:
    """`ValueError` if `out` holds an evaluation in the features of a network, which takes long; one of pixel values may
    be overwritten."""
    try:
        held = json.loads(out.read_text())
    except (OSError, ValueError):
        return
    if isinstance(held, dict) and "statistics" in held:
        raise ValueError(f"{out} is of an evaluation with --features; it is not overwritten. Choose another --out.")


def _differences(held: dict[str, Any], pins: dict[str, Any], above: str = "") -> list[str]:
    """What differs, each as `name theirs (here ours)`."""
    found = []
    for name, ours in pins.items():
        theirs = held.get(name)
        if name in NAMES or theirs == ours:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += _differences(theirs, ours, f"{above}{name}.")
        else:
            found.append(f"{above}{name} {_short(theirs)} (here {_short(ours)})")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def same_evaluation(identity: Any, pins: dict[str, Any]) -> bool:
    """Whether a row's identity is that of these pins, wherever things lay."""
    pins = json.loads(json.dumps(pins))
    return isinstance(identity, dict) and identity.keys() == pins.keys() and not _differences(identity, pins)
