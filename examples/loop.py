"""A complete training of your own: a flow map, an objective, and PyTorch. `python examples/loop.py` takes minutes."""

import copy
from pathlib import Path

import torch

from tvmatch.data import ShuffledStream, to_pictures, to_unit_range
from tvmatch.data.digits import digits_source
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance
from tvmatch.networks.presets import build_network, network_config
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.pictures import enlarge, save_png, tile
from tvmatch.sampling import draw
from tvmatch.training.ema import move_towards


def train(steps: int, batch: int = 128, device: str = "cpu") -> FlowMap:
    torch.manual_seed(0)
    digits = digits_source()
    flow = FlowMap(build_network(network_config("DiT-Digits/4", image_size=8, channels=1, num_classes=10))).to(device)
    average = copy.deepcopy(flow).requires_grad_(False)  # what is sampled
    objective = TerminalVelocityMatching(flow, guidance=FixedGuidance(1.5))  # has a slow copy of its own, the target
    optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    order = ShuffledStream(len(digits), batch, seed=0)
    for step in range(steps):
        chosen = order.indices(step)
        x0 = to_unit_range(torch.from_numpy(digits.batch(chosen)).to(device))
        label = torch.from_numpy(digits.labels[chosen]).to(device)
        objective.seed(step)  # of noise, times, guidance: a step repeats to the bit
        loss = objective(x0, label).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        move_towards([(objective.target, 0.99), (average, 0.99)], flow)
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    return average


if __name__ == "__main__":
    x = draw(train(steps=500), label=torch.arange(100) % 10, w=1.5, steps=1)  # one call of the network
    save_png(enlarge(tile(to_pictures(x).numpy(), columns=10)), Path("digits.png"))
