"""The one interface of training objectives."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tvmatch.checks import check_batch
from tvmatch.flow_map import FlowMap


def mean_square(error: Tensor) -> Tensor:
    """[B, ...] -> [B]: the mean of the squared elements of each sample."""
    return error.square().flatten(1).mean(1)


@torch.no_grad()
def root_mean_square(x: Tensor) -> Tensor:
    """[B, ...] -> [B]: the norm of each sample divided by the root of its number of elements, detached."""
    return mean_square(x.detach()).sqrt()


class SampleFigures(NamedTuple):
    """Figures of each sample [B] at its times, for the instruments (`tvmatch.training.instruments`); detached."""

    figures: dict[str, Tensor]
    t: Tensor
    s: Tensor | None = None  # None: the figures belong to the one time t


class StepLoss(NamedTuple):
    """What a training step computes: the loss to descend, its parts for the log (detached, scalar), and figures of
    each sample by its times."""

    loss: Tensor
    terms: dict[str, Tensor]
    samples: tuple[SampleFigures, ...] = ()


class Part(NamedTuple):
    """The samples that one forward holds of a step's whole batch: number `first` to `first + count - 1` of `whole`.

    A batch is shared by ranks and micro-steps. Every one of them makes the draws for the whole batch, from the same
    seed, and cuts out its own: the training then does not depend on how the batch is shared. Drawing too much costs
    microseconds; a random stream for each sample would cost more.
    """

    first: int
    count: int
    whole: int

    def cut(self, drawn: Tensor) -> Tensor:
        """[whole, ...] -> [count, ...]: what belongs to the samples of this part."""
        return drawn[self.first : self.first + self.count]

    def spread(self, label: Tensor) -> Tensor:
        """[count] -> [whole]: the labels of this part in their places, -1 elsewhere."""
        if self.count == self.whole:
            return label
        whole = label.new_full((self.whole,), -1)
        self.cut(whole).copy_(label)
        return whole


def _checked(_: nn.Module, inputs: tuple, named: dict) -> None:
    given = dict(zip(("x0", "label"), inputs, strict=False)) | named
    if {"x0", "label"} <= given.keys():  # else Python says what is missing
        check_batch(given["x0"], given["label"])


class Objective(nn.Module):
    """A flow map and a loss: `forward(x0, label)` makes every random draw and every network call of one step.

    One wrapped forward thus holds all of them, which data-parallel wrappers need. `target` is the slowly moving copy
    (EMA) of the flow map that objectives may compare with; the loop moves it after each step. Random draws come from
    `generator`, on the network's device, which the loop seeds anew for every step (resuming repeats them exactly).
    They are made for the whole batch of the step, of which `part` says what this forward holds (None: all of it).
    """

    has_target = True
    has_tangents = False  # whether a step differentiates the network along its inputs

    def __init__(self, flow: FlowMap) -> None:
        super().__init__()
        self.flow = flow
        self.target: FlowMap | None = copy.deepcopy(flow).requires_grad_(False) if self.has_target else None
        self.generator = torch.Generator(next(flow.parameters()).device)
        self.generator.manual_seed(torch.initial_seed())  # until `seed` is called: as torch.manual_seed was
        self.register_forward_pre_hook(_checked, with_kwargs=True)

    def seed(self, seed: int) -> None:
        """Restart the stream of random draws; a generator is made on the network's device if it has moved."""
        device = next(self.flow.parameters()).device
        if self.generator.device != device:
            self.generator = torch.Generator(device)
        self.generator.manual_seed(seed)

    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimiser moves, by name: the weights of the flow map (`network. ...`), and those that the objective
        has of its own (a learned weight of the loss)."""
        own = {name: value for name, value in self.named_parameters() if not name.startswith(("flow.", "target."))}
        return dict(self.flow.named_parameters()) | own

    def notice(self) -> str | None:
        """A sentence for whoever starts a training: how it departs, on this hardware, from what was asked for."""
        return None

    def advance(self, progress: float) -> None:
        """Told before every step which share of the training is done, in [0, 1]; for objectives with a curriculum."""

    def forward(self, x0: Tensor, label: Tensor, part: Part | None = None) -> StepLoss:
        """Data x0 [B, ...] and classes [B] (-1: none) -> the step's loss, the mean over these B samples."""
        raise NotImplementedError
