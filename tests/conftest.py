"""What all tests share: one thread (two cores are also shared with other tests), and a small flow map."""

import os

import pytest
import torch

from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT, DiTConfig

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # here, before any test module is read: whatever imports triton first (PyTorch's flop counter does) decides for all
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Random numbers in every parameter, so that no derivative is zero by initialisation."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


@pytest.fixture
def small_config() -> DiTConfig:
    return DiTConfig(image_size=4, channels=2, num_classes=3, patch_size=2, hidden_size=16, depth=2, num_heads=2)


@pytest.fixture
def flow(small_config: DiTConfig) -> FlowMap:
    """A random float64 flow map of 2 x 4 x 4 data and 3 classes."""
    return FlowMap(randomise(DiT(small_config)).double())


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """x, t, s, label, w for `flow`, batch 3."""
    return {
        "x": torch.randn(3, 2, 4, 4, dtype=torch.float64),
        "t": torch.tensor([0.9, 0.5, 1.0], dtype=torch.float64),
        "s": torch.tensor([0.2, 0.5, 0.0], dtype=torch.float64),
        "label": torch.tensor([-1, 0, 2]),
        "w": torch.tensor([1.0, 1.5, 3.0], dtype=torch.float64),
    }
