"""Training with Lightning: `python examples/lightning_training.py`.

An objective is a module whose forward gives the loss, so that a LightningModule needs little more than to call it.
"""

import copy
from collections.abc import Iterator

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tvmatch.data import ShuffledStream, to_unit_range
from tvmatch.data.digits import digits_source
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance
from tvmatch.networks.presets import build_network, network_config
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.training.ema import move_towards


class Digits(IterableDataset):
    """Batches of an endless, shuffled order; in several processes each has its own share."""

    def __init__(self, batch: int, rank: int = 0, ranks: int = 1) -> None:
        self.digits = digits_source()
        self.order = ShuffledStream(len(self.digits), batch, 0, rank, ranks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = 0
        while True:
            chosen = self.order.indices(step)
            yield (
                to_unit_range(torch.from_numpy(self.digits.batch(chosen))),
                torch.from_numpy(self.digits.labels[chosen]),
            )
            step += 1


class TVM(lightning.LightningModule):
    """Terminal Velocity Matching of handwritten digits; `average` is what to sample."""

    def __init__(self) -> None:
        super().__init__()
        flow = FlowMap(build_network(network_config("DiT-Digits/4", image_size=8, channels=1, num_classes=10)))
        self.objective = TerminalVelocityMatching(flow, guidance=FixedGuidance(1.5))
        self.average = copy.deepcopy(flow).requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        # another stream of draws in every step and, in several processes, in each of them
        self.objective.seed(self.global_step * self.trainer.world_size + self.global_rank)
        loss = self.objective(*batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        move_towards([(self.objective.target, 0.99), (self.average, 0.99)], self.objective.flow)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.objective.flow.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)


def train(steps: int, batch: int = 128, **trainer: object) -> FlowMap:
    """The averaged flow map after `steps` steps; further arguments are the Trainer's."""
    torch.manual_seed(0)
    model = TVM()
    data = DataLoader(Digits(batch), batch_size=None)
    lightning.Trainer(max_steps=steps, gradient_clip_val=1.0, **trainer).fit(model, data)
    return model.average


if __name__ == "__main__":
    train(steps=500)
