"""A trained run, opened for sampling: its flow map with averaged weights, and what it was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tvmatch.flow_map import FlowMap
from tvmatch.networks.presets import build_network
from tvmatch.training.checkpoint import CheckpointError, list_checkpoints, read_checkpoint, read_header, read_names
from tvmatch.training.preview import default_w
from tvmatch.training.run_folder import read_config
from tvmatch.training.state import check_same_names, network_from_header


@dataclass(frozen=True)
class TrainedRun:
    """A flow map ready to sample, with the names of its classes and the guidance it was trained for."""

    flow: FlowMap
    class_names: tuple[str, ...]
    objective: str
    w: float  # the guidance scale to use where none is asked for
    step: int
    checkpoint: Path
    ema: float

    @property
    def method(self) -> Literal["jump", "euler"]:
        """How this run is sampled: by jumps, or, where only a velocity was learned, by Euler steps."""
        return "euler" if self.objective == "flow-matching" else "jump"

    def class_index(self, name: str) -> int:
        """The index of a class given by name or number; `ValueError` says which classes there are."""
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isdigit() and int(name) < self.flow.network.num_classes:
            return int(name)
        listed = ", ".join(self.class_names[:12]) + (", ..." if len(self.class_names) > 12 else "")
        raise ValueError(f"no class is called {name!r}; there are {listed or 'none (unconditional run)'}.")


def load_run(run: Path, ema: float | None = None, device: str | torch.device = "cpu") -> TrainedRun:
    """Open the last checkpoint of a run. `ema` chooses the averaged weights by their decay (None: the slowest).

    Raises `RunFolderError` or `CheckpointError` for a folder or a file that will not do.
    """
    read_config(run)
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise CheckpointError(f"{run} has no checkpoint yet; train it first: tvmatch train --run {run}")
    path = checkpoints[-1]
    header = read_header(path)
    decays = sorted({float(name.removeprefix("ema.").split(".network.")[0]) for name in read_names(path, "ema.")})
    if ema is None:
        ema = decays[-1]
    if ema not in decays:
        raise ValueError(f"{path} keeps averages of decay {', '.join(f'{d:g}' for d in decays)}, not {ema:g}.")
    flow = FlowMap(build_network(network_from_header(header.get("network"), str(path))), scaled=header["scaled"])
    tensors = read_checkpoint(path, f"ema.{ema:g}.")
    check_same_names(flow.state_dict(), tensors, str(path))
    flow.load_state_dict(tensors)
    return TrainedRun(
        flow=flow.to(device).requires_grad_(False).eval(),
        class_names=tuple(header["class_names"]),
        objective=header["objective"],
        w=default_w(header["guidance"]),
        step=header["step"],
        checkpoint=path,
        ema=ema,
    )
