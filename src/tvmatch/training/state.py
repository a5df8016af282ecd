"""The state of a training run as named tensors: what a checkpoint holds, and nothing else."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tvmatch.objectives import Objective
from tvmatch.training.checkpoint import load_checkpoint, read_shapes
from tvmatch.training.ema import EvaluationEma, move_towards
from tvmatch.training.header import check_same_names, ema_prefix
from tvmatch.training.optimizers import Optimizer, slots
from tvmatch.training.skipping import SkippedSteps


@dataclass
class TrainingState:
    """Weights, target, evaluation averages, optimiser and step. Random draws and the order of the data follow from
    the seed and the step alone, so they need no state of their own."""

    objective: Objective
    ema: EvaluationEma
    optimizer: Optimizer
    step: int = 0  # training steps done
    skipped: SkippedSteps = field(init=False)

    def __post_init__(self) -> None:
        self.skipped = SkippedSteps(next(self.objective.flow.parameters()).device)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its name in a checkpoint."""
        named = {f"flow.{name}": value for name, value in self.objective.flow.state_dict().items()}
        if self.objective.target is not None:
            named |= {f"target.{name}": value for name, value in self.objective.target.state_dict().items()}
        for decay, average in self.ema.flows.items():
            named |= {f"{ema_prefix(decay)}{name}": value for name, value in average.state_dict().items()}
        trained = self.objective.trained()
        own = trained.keys() - dict(self.objective.flow.named_parameters()).keys()
        named |= {f"objective.{name}": trained[name].detach() for name in sorted(own)}
        for name, parameter in trained.items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                named[f"optimizer.{slot}.{name}"] = torch.as_tensor(value)
        return named | self.skipped.tensors()

    def load(self, path: Path, step: int, group: dist.ProcessGroup | None = None) -> None:
        """Continue from a checkpoint, of any number of ranks. `CheckpointError` names what is missing, left over or
        misshapen, and then nothing was loaded."""
        goal = {name: value.detach() for name, value in self.tensors().items() if not name.startswith("optimizer.")}
        places: dict[str, tuple[Tensor, str]] = {}
        kept = slots(self.optimizer) if step > 0 else {}
        for name, parameter in self.objective.trained().items():
            for slot in kept.get(parameter, ()):
                # AdamW(fused=True) keeps its step count beside the parameter, as a plain tensor
                zeros = torch.zeros((), device=parameter.device) if slot == "step" else torch.zeros_like(parameter)
                goal[f"optimizer.{slot}.{name}"] = zeros.detach()
                places[f"optimizer.{slot}.{name}"] = parameter, slot
        check_same_names({name: value.shape for name, value in goal.items()}, read_shapes(path), str(path))
        load_checkpoint(path, goal, group)
        self.optimizer.state.clear()
        for key, (parameter, slot) in places.items():
            self.optimizer.state[parameter][slot] = goal[key]
        self.step = step

    def descend(self, skip: Tensor, target_decay: float) -> None:
        """A step of the optimiser, and of the averages. Where `skip` is 1 (float32, on the device) every bit stays as
        it was, and the host need not know."""
        self.optimizer.found_inf = skip  # what fused optimisers look at
        self.optimizer.step()
        self.move_averages(target_decay, skip)
        self.step += 1

    def move_averages(self, target_decay: float, skip: Tensor | None = None) -> None:
        """After a step of the optimiser: the target and every evaluation average follow the flow map."""
        moving = self.ema.at(self.step)
        if self.objective.target is not None:
            moving.append((self.objective.target, target_decay))
        move_towards(moving, self.objective.flow, skip)
