"""Training with Hugging Face accelerate, on one device or many: `accelerate launch examples/accelerate_training.py`.

Every call of the network in a step happens inside the one wrapped forward of the objective, so that gradients are
averaged over the processes as they should be. `Part` says which samples of the step's batch a process holds: the random
draws are then those of one process, and the training does not depend on their number.
"""

import copy

import torch
from accelerate import Accelerator

from tvmatch.data import ShuffledStream, to_unit_range
from tvmatch.data.digits import digits_source
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance
from tvmatch.networks.presets import build_network, network_config
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.objectives.base import Part
from tvmatch.training.ema import move_towards


def train(accelerator: Accelerator, steps: int, batch: int = 128) -> FlowMap:
    """The averaged flow map after `steps` steps of `batch` samples over all processes."""
    torch.manual_seed(0)  # the same first weights everywhere
    digits = digits_source()
    flow = FlowMap(build_network(network_config("DiT-Digits/4", image_size=8, channels=1, num_classes=10)))
    objective = TerminalVelocityMatching(flow, guidance=FixedGuidance(1.5)).to(accelerator.device)
    average = copy.deepcopy(flow).requires_grad_(False)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    order = ShuffledStream(len(digits), batch, 0, accelerator.process_index, accelerator.num_processes)
    part = Part(order.first, order.share, batch)
    for step in range(steps):
        chosen = order.indices(step)
        x0 = to_unit_range(torch.from_numpy(digits.batch(chosen)).to(accelerator.device))
        label = torch.from_numpy(digits.labels[chosen]).to(accelerator.device)
        objective.seed(step)
        loss = wrapped(x0, label, part).loss
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        move_towards([(objective.target, 0.99), (average, 0.99)], flow)
        if step % 20 == 0:
            mean = accelerator.reduce(loss.detach(), "mean")
            accelerator.print(f"step {step}: loss {mean.item():.3f}")
    return average


if __name__ == "__main__":
    train(Accelerator(), steps=500)
