"""Training objectives on one interface: `objective(x0, label)` is a whole step's loss (see `base.Objective`)."""

from tvmatch.objectives.alpha_flow import AlphaFlow
from tvmatch.objectives.base import Objective, Part, SampleFigures, StepLoss
from tvmatch.objectives.consistency_training import ConsistencyTraining
from tvmatch.objectives.few_step import FewStepObjective
from tvmatch.objectives.flow_matching import FlowMatching
from tvmatch.objectives.improved_mean_flow import ImprovedMeanFlow
from tvmatch.objectives.inductive_moment_matching import InductiveMomentMatching
from tvmatch.objectives.lagrangian import LagrangianSelfDistillation
from tvmatch.objectives.mean_flow import MeanFlow
from tvmatch.objectives.modular_mean_flow import ModularMeanFlow
from tvmatch.objectives.shortcut import Shortcut
from tvmatch.objectives.split_mean_flow import SplitMeanFlow
from tvmatch.objectives.terminal_velocity import TerminalVelocityMatching

__all__ = [
    "AlphaFlow",
    "ConsistencyTraining",
    "FewStepObjective",
    "FlowMatching",
    "ImprovedMeanFlow",
    "InductiveMomentMatching",
    "LagrangianSelfDistillation",
    "MeanFlow",
    "ModularMeanFlow",
    "Objective",
    "Part",
    "SampleFigures",
    "Shortcut",
    "SplitMeanFlow",
    "StepLoss",
    "TerminalVelocityMatching",
]
