from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.training.support import tiny_config, tiny_network
from tvmatch.data.arrays import source_from_arrays
from tvmatch.training.loop import train


@pytest.fixture(autouse=True)
def _tiny_network() -> Iterator[None]:
    with tiny_network():
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures of three classes, in an .npz file beside it."""
    folder = tmp_path_factory.mktemp("a folder")
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    labels, names = np.arange(12) % 3, ("bee", "wasp", "ant [x]")
    np.savez(folder / "data.npz", images=images, labels=labels, class_names=np.array(names))
    config = tiny_config(folder / "run v1.5", data=str(folder / "data.npz"), steps=16, learning_rate=1e-2)
    with tiny_network():
        train(config, source=source_from_arrays(images, labels, names), show=False)
    return config.run
