"""What a run needs before its first step: network, objective, optimiser and averages, fresh or from a checkpoint."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from tvmatch.data.latents import LatentsSource
from tvmatch.data.source import Source
from tvmatch.guidance import parse_guidance
from tvmatch.networks.probe import verify_tangents
from tvmatch.training.build import (
    BY_W,
    build_flow,
    build_objective,
    check_label_dropout,
    guidance_of,
    network_shape,
    shared_in,
)
from tvmatch.training.checkpoint import CheckpointError, read_header, step_of
from tvmatch.training.config import TrainConfig
from tvmatch.training.distributed import distribute
from tvmatch.training.ema import EvaluationEma
from tvmatch.training.engine import compute_dtype, prepare_objective, should_capture, should_compile
from tvmatch.training.header import network_from_header, network_to_header
from tvmatch.training.initial import load_initial
from tvmatch.training.optimizers import build_optimizer
from tvmatch.training.ranks import Ranks, checksums
from tvmatch.training.state import TrainingState


def share_of(config: TrainConfig, ranks: Ranks) -> int:
    """Samples of a step that each process gets in each micro-step."""
    return config.batch_size // (ranks.count * config.accumulate)


def check_shares(config: TrainConfig, processes: int) -> None:
    """Raise `ValueError` unless every process and micro-step gets the same number of samples, and whole groups of them:
    those of which one jumps, or that are compared."""
    if config.batch_size % (processes * config.accumulate):
        raise ValueError(
            f"batch_size={config.batch_size} is that of all processes together: it must be a multiple of {processes} "
            f"process{'es' if processes > 1 else ''} x {config.accumulate} micro-step"
            f"{'s' if config.accumulate > 1 else ''} (--accumulate)."
        )
    share = config.batch_size // (processes * config.accumulate)
    size, reason = shared_in(config)
    if share % size:
        raise ValueError(
            f"{reason} must divide the {share} samples that each process and micro-step gets of "
            f"batch_size={config.batch_size}; make it a multiple of {size * processes * config.accumulate}."
        )


def deviation_of(source: Source) -> float:
    """About the deviation of the data as the network sees it: 0.5 for pixels in [-1, 1], as diffusion models take it,
    and 1 for latents, which are normalised to it, and points."""
    _, height, width = source.shape
    return 0.5 if source.latent_space is None and height * width > 1 else 1.0


def prepare(
    config: TrainConfig, source: Source, ranks: Ranks, fresh: bool = True
) -> tuple[TrainingState, dict, nn.Module]:
    """A fresh training state, the header that its checkpoints carry, and the module to call for a loss: the objective,
    made ready for the hardware, its tangents verified, and distributed over the ranks. Without `fresh` a checkpoint
    will be loaded into it, and `config.initial` is not asked for."""
    if config.flip and isinstance(source, LatentsSource):
        source.require_flips()  # the first batch would say so, in a folder that then refuses --no-flip
    channels, side, _ = source.shape
    asked = config if fresh else without_vain_options(config, source.num_classes)
    guidance = guidance_of(asked, source.num_classes)
    if fresh:  # earlier versions took any share, and a run of theirs goes on
        check_label_dropout(config, source.labels)
    shape = network_shape(config, side, channels, source.num_classes)
    device = ranks.device
    loaded = config.initial is not None and fresh
    if loaded and config.initialisation != TrainConfig().initialisation:
        raise ValueError(
            f"initialisation={config.initialisation} does nothing with --initial {config.initial}, from which all "
            "weights come; leave it out."
        )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        with device:  # initial weights are normalised on the device: quick for large networks on a GPU
            flow = build_flow(config, shape, initialise=not loaded)
    if loaded:
        load_initial(flow, Path(config.initial), source.class_names)
    objective = build_objective(asked, flow, deviation_of(source))
    ema = EvaluationEma(flow, config.evaluation_ema)
    dtype = compute_dtype(config.precision, device)
    sharded = ranks.strategy == "fsdp"
    prepare_objective(objective, dtype, should_compile(config.compile, device), config.recompute, sharded)
    if objective.has_tangents:
        verify_tangents(flow, share_of(config, ranks), config.terminal_every)
        # The check for a zero tangent would ask plainly about the samples that jump, and compile all for their number
        flow.tangent_seen = config.terminal_every > 1
    ranks.require_equal("before the first step", options_of(config, source) | checksums(objective.state_dict()))
    recorded = should_capture(config.graphs, device, ranks.count, config.accumulate)
    module = distribute(objective, ema.flows.values(), ranks, config.fsdp_gather, recorded)
    optimizer = build_optimizer(config, objective)
    header = {
        "network": network_to_header(shape),
        "scaled": config.scaled,
        "objective": config.objective,
        "guidance": guidance,
        "class_names": list(source.class_names),
        "data": source.fingerprint,
        "latent_space": None if source.latent_space is None else source.latent_space.to_header(),
    }
    return TrainingState(objective, ema, optimizer), header, module


def without_vain_options(config: TrainConfig, num_classes: int) -> TrainConfig:
    """For a run that goes on: earlier versions took guidance and hidden classes for data without classes, and where w
    is always 1 what multiplies or divides by it, and the decay of a target for flow matching. They did nothing, and
    such a run cannot be given others now."""
    default = TrainConfig()
    if num_classes == 0:
        config = dataclasses.replace(config, guidance=default.guidance, label_dropout=default.label_dropout)
    if parse_guidance(guidance_of(config, num_classes)).always_one:
        vain = (*BY_W, *(["target_ema"] if config.objective == "flow-matching" else []))
        config = dataclasses.replace(config, **{name: getattr(default, name) for name in vain})
    return config


def options_of(config: TrainConfig, source: Source) -> dict[str, str]:
    """What every rank must have been told alike."""
    options = {f.name: repr(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return options | {"the data set": source.fingerprint, "the version of PyTorch": torch.__version__}


def resume(state: TrainingState, header: dict, path: Path, ranks: Ranks) -> None:
    """Load a checkpoint into a fresh state, refusing one of another network or other data."""
    saved = read_header(path)
    if network_from_header(saved.get("network"), str(path)) != network_from_header(header["network"], str(path)):
        raise CheckpointError(f"{path} is of another architecture: {saved['network']}, not {header['network']}.")
    if saved.get("data") != header["data"]:
        raise CheckpointError(
            f"{path} was trained on other data than this command reads now. Restore the data, or choose another --run."
        )
    if saved["step"] != step_of(path):
        raise CheckpointError(f"{path} holds step {saved['step']}; give it back the name it was saved under.")
    state.load(path, saved["step"], ranks.control)
