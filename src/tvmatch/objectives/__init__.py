"""Training objectives on one interface: `objective(x0, label)` is a whole step's loss (see `base.Objective`)."""

from tvmatch.objectives.base import Objective, Part, SampleFigures, StepLoss
from tvmatch.objectives.flow_matching import FlowMatching
from tvmatch.objectives.terminal_velocity import TerminalVelocityMatching

__all__ = ["FlowMatching", "Objective", "Part", "SampleFigures", "StepLoss", "TerminalVelocityMatching"]
