"""A trained run, opened for sampling: its flow map with averaged weights, and what it was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tvmatch.data.latent_space import LatentSpace
from tvmatch.data.naming import class_index
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import check_scale
from tvmatch.networks.presets import build_network
from tvmatch.sampling import Method, method_of
from tvmatch.training.checkpoint import (
    CheckpointError,
    last_checkpoint,
    list_files,
    read_checkpoint,
    read_header,
    read_shapes,
)
from tvmatch.training.header import check_same_names, ema_prefix, network_from_header
from tvmatch.training.preview import default_w
from tvmatch.training.run_folder import read_config


@dataclass(frozen=True)
class TrainedRun:
    """A flow map ready to sample, with the names of its classes and the guidance it was trained for."""

    flow: FlowMap
    class_names: tuple[str, ...]
    objective: str
    guidance: str  # how w was drawn in training
    w: float  # the guidance scale to use where none is asked for
    step: int
    checkpoint: Path
    ema: float
    latent_space: LatentSpace | None = None  # what the network draws, where that is no picture
    nfe: int = 1  # network calls to use where none are asked for

    @property
    def method(self) -> Method:
        """How this run is sampled: by jumps, unless its objective teaches something else."""
        return method_of(self.objective)

    def class_index(self, name: str) -> int:
        """The index of a class given by name, or by number unless there are names that are numbers themselves;
        `ValueError` says which classes there are."""
        return class_index(name, self.class_names, self.flow.network.num_classes)

    def check_w(self, w: float) -> str | None:
        """`ValueError` for a guidance scale that cannot work; a sentence of warning for one not seen in training."""
        return check_scale(w, self.guidance, self.flow.network.num_classes)

    @property
    def undecoded(self) -> bool:
        """Whether it draws latents of a codec that nobody named, as an imported model may."""
        return self.latent_space is None and self.flow.network.data_shape[0] not in (1, 3)

    def check_codec(self, codec: str | None) -> None:
        """`ValueError` for a --codec that could decode nothing."""
        if codec is None or self.latent_space is not None:
            return
        if self.undecoded:
            raise ValueError(
                f"--codec {codec}: this run draws latents whose mean and deviation it does not know, so no codec can "
                "decode them; import the model again with its --codec."
            )
        raise ValueError(f"--codec {codec}: this run draws pictures, not latents; leave it out.")


def load_run(run: Path, ema: float | None = None, device: str | torch.device = "cpu") -> TrainedRun:
    """Open the last checkpoint of a run, or a plain safetensors file (`tvmatch export`). `ema` chooses the averaged
    weights by their decay (None: the slowest).

    Raises `RunFolderError` or `CheckpointError` for a folder or a file that will not do.
    """
    path = weights_of(run)
    header = read_header(path)
    ema = choose_average(path, averages_in(path), ema)
    shape = network_from_header(header.get("network"), str(path))
    flow = FlowMap(build_network(shape, initialise=False), scaled=header["scaled"])
    tensors = read_checkpoint(path, ema_prefix(ema))
    ours = {name: value.shape for name, value in flow.state_dict().items()}
    check_same_names(ours, {name: value.shape for name, value in tensors.items()}, str(path))
    flow.load_state_dict(tensors)
    return TrainedRun(
        flow=flow.to(device).requires_grad_(False).eval(),
        class_names=tuple(header["class_names"]),
        objective=header["objective"],
        guidance=header["guidance"],
        w=header.get("w") or default_w(header["guidance"], flow.network.num_classes),  # imported models say theirs
        step=header["step"],
        checkpoint=path,
        ema=ema,
        latent_space=latent_space_from_header(header, str(path)),
        nfe=header.get("nfe", 1),
    )


def weights_of(run: Path) -> Path:
    """The last checkpoint of a run, or the exported file that `run` is; raises as `load_run`."""
    if run.suffix == ".safetensors" and run.is_file():
        return run
    read_config(run)
    last = last_checkpoint(run)
    found = list_files(run) if last is None else [last]
    if not found:
        raise CheckpointError(f"{run} has no checkpoint yet; train it first: tvmatch train --run {run}")
    return found[-1]


def latent_space_from_header(header: dict[str, Any], source: str) -> LatentSpace | None:
    """The latent space of a checkpoint's header; None for a model of pictures."""
    if header.get("latent_space") is None:
        return None
    try:
        return LatentSpace.from_header(header["latent_space"])
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def averages_in(path: Path) -> list[float]:
    """The decays of the averaged weights in a checkpoint, ascending."""
    decays = sorted({float(name.removeprefix("ema.").split(".network.")[0]) for name in read_shapes(path, "ema.")})
    if not decays:
        raise CheckpointError(f"{path} holds no averaged weights; it was not written by tvmatch.")
    return decays


def choose_average(path: Path, decays: list[float], ema: float | None) -> float:
    """The decay asked for, or the slowest; `ValueError` if the checkpoint has no such average."""
    if ema is not None and ema not in decays:
        raise ValueError(f"{path} keeps averages of decay {', '.join(map(str, decays))}, not {ema}.")
    return decays[-1] if ema is None else ema
