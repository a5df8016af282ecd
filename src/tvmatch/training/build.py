"""From a configuration to a flow map and an objective: the one place where option values become classes."""

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import parse_guidance
from tvmatch.networks.dit import DiTConfig
from tvmatch.networks.presets import build_network
from tvmatch.objectives import FlowMatching, Objective, TerminalVelocityMatching
from tvmatch.times import Independent, JumpScheme, LogitNormal, TruncatedGap, Uniform
from tvmatch.training.config import JumpName, TrainConfig

JUMPS: dict[JumpName, JumpScheme] = {
    "truncated-gap": TruncatedGap(),
    "logit-normal": Independent(LogitNormal()),
    "uniform": Independent(Uniform()),
}


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
            defaults = TrainConfig()
            for name in ("jumps", "detach_jvp", "weighted"):
                if getattr(config, name) != getattr(defaults, name):
                    raise ValueError(f"flow-matching has no option {name}; leave it out.")
            return FlowMatching(flow, guidance=guidance, label_dropout=config.label_dropout)
    raise ValueError(f"unknown objective {config.objective!r}.")
