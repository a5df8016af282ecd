import math

import pytest
import torch

from tvmatch.networks.embeddings import fourier_features, grid_positions


def test_fourier_features_by_hand() -> None:
    value = torch.tensor([0.0, 0.3], dtype=torch.float64)
    features = fourier_features(value)
    assert features.shape == (2, 256)
    assert features[0].tolist() == [1.0] * 128 + [0.0] * 128  # cosines first
    frequency = 10_000 ** (-5 / 128)
    assert float(features[1, 5]) == pytest.approx(math.cos(0.3 * frequency), abs=1e-15)
    assert float(features[1, 128 + 5]) == pytest.approx(math.sin(0.3 * frequency), abs=1e-15)


def test_positions_by_hand() -> None:
    positions = grid_positions(8, 2, 3)
    assert positions.shape == (6, 8)
    row, column = 1, 2
    expected = [f(axis * 10_000 ** (-k / 2)) for axis in (column, row) for f in (math.sin, math.cos) for k in (0, 1)]
    torch.testing.assert_close(positions[row * 3 + column], torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_positions(6, 2, 2)
