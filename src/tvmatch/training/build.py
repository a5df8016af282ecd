"""From a configuration to a flow map and an objective: the one place where option values become classes."""

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import parse_guidance
from tvmatch.networks.dit import DiTConfig
from tvmatch.networks.presets import build_network
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
from tvmatch.times import Independent, JumpScheme, LogitNormal, TruncatedGap, Uniform
from tvmatch.training.config import JumpName, ObjectiveName, TrainConfig

JUMPS: dict[JumpName, JumpScheme | None] = {
    "auto": None,  # the objective's own
    "truncated-gap": TruncatedGap(),
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

def build_flow(config: TrainConfig, network: DiTConfig) -> FlowMap:
    """A freshly initialised flow map; initial weights come from torch's global random stream."""
    return FlowMap(build_network(network), scaled=config.scaled)


def build_objective(config: TrainConfig, flow: FlowMap) -> Objective:
    """The objective that the configuration names, around `flow`. An option that it would ignore is an error."""
    guidance = parse_guidance(config.guidance)
    match config.objective:
        case "terminal-velocity":
            return TerminalVelocityMatching(
                flow,
                jumps=JUMPS[config.jumps],
                guidance=guidance,
                label_dropout=config.label_dropout,
                weighted=config.weighted,
                detach_jvp=config.detach_jvp,
            )
        case "flow-matching":
            _refuse(config, "jumps", "detach_jvp", "weighted")
            return FlowMatching(flow, guidance=guidance, label_dropout=config.label_dropout)
        case name if name in FEW_STEP:
            method = FEW_STEP[name]
            _refuse(config, "detach_jvp", "weighted", *([] if method.has_target else ["target_ema"]))
            if method in OWN_JUMPS:
                _refuse(config, "jumps")
                return method(flow, guidance=guidance, label_dropout=config.label_dropout)
            return method(flow, jumps=JUMPS[config.jumps], guidance=guidance, label_dropout=config.label_dropout)
    raise ValueError(f"unknown objective {config.objective!r}.")


def _refuse(config: TrainConfig, *names: str) -> None:
    """Raise if one of these options was given: the objective would ignore it."""
    defaults = TrainConfig()
    for name in names:
        if getattr(config, name) != getattr(defaults, name):
            raise ValueError(f"{config.objective} has no option {name}; leave it out.")
