"""What a checkpoint says of the network in it, and how its tensors are named."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from tvmatch.networks.dit import DiTConfig
from tvmatch.networks.mlp import MLPConfig
from tvmatch.networks.presets import NetworkConfig
from tvmatch.networks.unet import UNetConfig
from tvmatch.training.checkpoint import CheckpointError


def ema_prefix(decay: float) -> str:
    """What the names of an average's tensors start with; the decay in full, as 0.9999999 is not 1."""
    return f"ema.{float(decay)!r}."


def check_same_names(ours: Mapping[str, torch.Size], theirs: Mapping[str, torch.Size], source: str) -> None:
    """Raise `CheckpointError` unless both hold the same names with the same shapes."""
    missing, unknown = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if missing or unknown:
        parts = [f"it lacks {missing[0]} (and {len(missing) - 1} more)"] if missing else []
        parts += [f"it has {unknown[0]} (and {len(unknown) - 1} more), which is unknown here"] if unknown else []
        raise CheckpointError(f"{source} is of another architecture or objective: {'; '.join(parts)}.")
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise CheckpointError(
                f"{source} is of another architecture: {name} has shape {list(theirs[name])}, "
                f"this network needs {list(shape)}."
            )


def network_to_header(config: NetworkConfig) -> dict[str, Any]:
    """The network's configuration as JSON values."""
    return dataclasses.asdict(config)


def network_from_header(values: Any, source: str) -> NetworkConfig:
    """The network's configuration from a checkpoint's header; that of a network for points says its `dimension`, that
    of a U-Net its `base_channels`."""
    try:
        kind = MLPConfig if "dimension" in values else UNetConfig if "base_channels" in values else DiTConfig
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source} describes a network that this version does not know: {error}") from error
