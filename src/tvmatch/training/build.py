"""From a configuration to a flow map and an objective: the one place where option values become classes."""

import dataclasses

import numpy as np

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import parse_guidance
from tvmatch.networks.dit import DiTConfig
from tvmatch.networks.presets import build_network, network_config
from tvmatch.objectives import (
    AlphaFlow,
    ConsistencyTraining,
    FewStepObjective,
    FlowMatching,
    ImprovedMeanFlow,
    InductiveMomentMatching,
    LagrangianSelfDistillation,
    MeanFlow,
    ModularMeanFlow,
    Objective,
    Shortcut,
    SplitMeanFlow,
    TerminalVelocityMatching,
)
from tvmatch.objectives.inductive_moment_matching import GROUP
from tvmatch.times import Independent, JumpScheme, LogitNormal, ToData, TruncatedGap, Uniform
from tvmatch.training.config import JumpName, ObjectiveName, TrainConfig

JUMPS: dict[JumpName, JumpScheme | None] = {
    "auto": None,  # the objective's own
    "truncated-gap": TruncatedGap(),  # gaps of 0.31 in the middle: sigmoid(-0.8)
    "near": TruncatedGap(gap_mean=-2.5),  # s near t: 0.08
    "wide": TruncatedGap(gap_mean=0.0),  # 0.5: longer jumps, with short ones among them still
    "far": TruncatedGap(gap_mean=1.0),  # s far from t: 0.73
    "to-data": ToData(LogitNormal()),
    "logit-normal": Independent(LogitNormal()),
    "uniform": Independent(Uniform()),
}

FEW_STEP: dict[ObjectiveName, type[FewStepObjective]] = {
    "mean-flow": MeanFlow,
    "improved-mean-flow": ImprovedMeanFlow,
    "split-mean-flow": SplitMeanFlow,
    "shortcut": Shortcut,
    "alpha-flow": AlphaFlow,
    "lagrangian": LagrangianSelfDistillation,
    "modular-mean-flow": ModularMeanFlow,
    "consistency-training": ConsistencyTraining,
    "inductive-moment-matching": InductiveMomentMatching,
}

OWN_JUMPS = (Shortcut, ConsistencyTraining, InductiveMomentMatching)  # dyadic; to s = 0; shared by groups

OWN_OPTIONS = ("detach_jvp", "weighted", "boundary_at_end", "terminal_every")  # of terminal velocity matching alone

BY_W = ("scaled", "weighted")  # multiply by w and divide by w^2

NETWORK_OPTIONS = ("norm", "qk_norm", "modulation_norm", "initialisation")


def network_shape(config: TrainConfig, image_size: int, channels: int, num_classes: int) -> DiTConfig:
    """The network that the configuration names, for such data. An option that it does not have is an error."""
    shape = network_config(config.network, image_size, channels, num_classes)
    known = {field.name for field in dataclasses.fields(shape)}
    _refuse(config, *(name for name in NETWORK_OPTIONS if name not in known), owner=config.network)
    return dataclasses.replace(shape, **{name: getattr(config, name) for name in NETWORK_OPTIONS if name in known})


def build_flow(config: TrainConfig, network: DiTConfig, initialise: bool = True) -> FlowMap:
    """A freshly initialised flow map; initial weights come from torch's global random stream. Without `initialise` they
    are arbitrary, and all of them must be loaded."""
    return FlowMap(build_network(network, initialise), scaled=config.scaled)


def guidance_of(config: TrainConfig, num_classes: int) -> str:
    """How w is drawn for data of so many classes, as `--guidance` says it. Without classes w is 1: guidance mixes the
    velocity of a class with that of none. `ValueError` where guidance or hidden classes were asked for all the same."""
    if num_classes > 0:
        return config.guidance
    guidance, default = parse_guidance(config.guidance), TrainConfig()
    if not guidance.always_one and guidance != parse_guidance(default.guidance):
        raise ValueError(
            f"guidance {config.guidance}: without classes w must be 1, and this data has none; leave it out or give "
            "--guidance 1."
        )
    if config.label_dropout not in (0.0, default.label_dropout):
        raise ValueError(
            f"label_dropout {config.label_dropout:g}: this data has no classes to hide; leave it out or give "
            "--label-dropout 0."
        )
    return "1"


def check_label_dropout(config: TrainConfig, labels: np.ndarray) -> None:
    """Raise `ValueError` for a share of hidden classes with which guidance cannot be learned from data of these labels
    [N]. Every objective mixes the velocity without a class into its guided target, and w is 1 for samples without."""
    if not (labels >= 0).any() or parse_guidance(config.guidance).always_one:
        return
    if config.label_dropout == 0 and (labels >= 0).all():
        raise ValueError(
            f"label_dropout 0: guidance {config.guidance} asks for the velocity without a class, and no sample would "
            "teach it; give --label-dropout 0.1, or --guidance 1."
        )
    if config.label_dropout == 1:
        raise ValueError(
            f"label_dropout 1: without a class w is 1, so guidance {config.guidance} would do nothing; give "
            "--label-dropout 0.1, or --guidance 1."
        )


def build_objective(config: TrainConfig, flow: FlowMap, data_deviation: float = 1.0) -> Objective:
    """The objective that the configuration names, around `flow`. An option that it would ignore is an error.
    `data_deviation` is that of the data as the network sees it, which the times of consistency training follow."""
    guidance = parse_guidance(guidance_of(config, flow.network.num_classes))
    if guidance.always_one:
        # weights of another run ask for the same parameterisation
        vain = [name for name in BY_W if name != "scaled" or config.initial is None]
        _refuse(config, *vain, reason="does nothing where w is always 1")
    match config.objective:
        case "terminal-velocity":
            return TerminalVelocityMatching(
                flow,
                jumps=JUMPS[config.jumps],
                guidance=guidance,
                label_dropout=config.label_dropout,
                weighted=config.weighted,
                detach_jvp=config.detach_jvp,
                boundary_at_end=config.boundary_at_end,
                terminal_every=config.terminal_every,
            )
        case "flow-matching":
            # the average of the weights gives its guided target, and nothing where w is always 1
            _refuse(config, "jumps", *OWN_OPTIONS, *(["target_ema"] if guidance.always_one else []))
            return FlowMatching(flow, guidance=guidance, label_dropout=config.label_dropout)
        case name if name in FEW_STEP:
            method = FEW_STEP[name]
            _refuse(config, *OWN_OPTIONS, *([] if method.has_target else ["target_ema"]))
            if method in OWN_JUMPS:
                _refuse(config, "jumps")
            if method is ConsistencyTraining:
                return ConsistencyTraining(flow, guidance, config.label_dropout, data_deviation=data_deviation)
            if method in OWN_JUMPS:
                return method(flow, guidance=guidance, label_dropout=config.label_dropout)
            return method(flow, jumps=JUMPS[config.jumps], guidance=guidance, label_dropout=config.label_dropout)
    raise ValueError(f"unknown objective {config.objective!r}.")


def shared_in(config: TrainConfig) -> tuple[int, str]:
    """What the samples of every process and micro-step must be a multiple of, and why in words."""
    if config.objective == "inductive-moment-matching":
        return GROUP, f"the groups of {GROUP} samples that inductive-moment-matching compares"
    return config.terminal_every, f"terminal_every={config.terminal_every}"


def _refuse(config: TrainConfig, *names: str, owner: str | None = None, reason: str | None = None) -> None:
    """Raise if one of these options was given: the objective (or `owner`) would ignore it, or for another reason."""
    defaults = TrainConfig()
    for name in names:
        value = getattr(config, name)
        if value != getattr(defaults, name):
            what = f"{owner or config.objective} has no option {name}" if reason is None else f"{name}={value} {reason}"
            raise ValueError(f"{what}; leave it out.")
