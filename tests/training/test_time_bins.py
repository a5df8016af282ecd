import json

import numpy as np
import pytest
import torch

from tvmatch.objectives import SampleFigures
from tvmatch.training.time_bins import BINS, binned_sums, cell_index, cells, label, means


def samples(batch: int = 300, two: bool = True) -> SampleFigures:
    t = torch.rand(batch)
    s = t * torch.rand(batch) if two else None
    return SampleFigures({"loss": torch.randn(batch) ** 2, "norm": torch.rand(batch)}, t, s)


@pytest.mark.parametrize("two", [True, False])
def test_bins_are_those_of_numpy(two: bool) -> None:
    given = samples(two=two)
    table = means(list(given.figures), binned_sums(given))
    times = [given.t.numpy()] + ([given.s.numpy()] if two else [])
    grid = [np.linspace(0, 1, BINS + 1)] * len(times)
    count, _ = np.histogramdd(np.stack(times, 1), grid)
    for name, values in given.figures.items():
        total, _ = np.histogramdd(np.stack(times, 1), grid, weights=values.double().numpy())
        assert len(table[name]) == np.count_nonzero(count)
        for *lower, mean, number in table[name]:
            cell = tuple(round(low * BINS) for low in lower)
            assert number == count[cell] > 0
            assert mean == pytest.approx(total[cell] / count[cell], rel=1e-5)
    assert sum(row[-1] for row in table["loss"]) == 300


def test_the_ends_of_time_have_a_bin() -> None:
    ends = torch.tensor([0.0, 1.0, 1.0 - 1e-7, 1.0 + 1e-6, -1e-7])
    assert cell_index(ends).tolist() == [0, BINS - 1, BINS - 1, BINS - 1, 0]
    assert cell_index(torch.ones(2), torch.tensor([0.0, 1.0])).tolist() == [cells(2) - BINS, cells(2) - 1]


def test_what_is_not_finite_touches_no_other_sample_and_is_counted() -> None:
    given = samples()
    clean = binned_sums(given)
    value = given.figures["loss"].clone()
    value[7], value[11] = float("nan"), float("inf")
    sums = binned_sums(given._replace(figures=given.figures | {"loss": value}))
    assert bool(sums.isfinite().all())
    assert sums[2].sum(1).tolist() == [2.0, 0.0]
    assert torch.equal(sums[:, 1], clean[:, 1])
    touched = cell_index(given.t, given.s)[[7, 11]]
    others = torch.ones(cells(2), dtype=torch.bool)
    others[touched] = False
    assert torch.equal(sums[:2, 0][:, others], clean[:2, 0][:, others])


def test_empty_bins_are_absent_and_the_table_is_strict_json() -> None:
    one = SampleFigures({"loss": torch.tensor([0.5])}, torch.tensor([0.7]), torch.tensor([0.2]))
    assert means(["loss"], binned_sums(one)) == {"loss": [[0.625, 0.125, 0.5, 1]]}
    assert means(["loss"], torch.zeros(3, 1, cells(1))) == {"loss": []}
    json.dumps(means(["a", "b"], binned_sums(samples())), allow_nan=False)


def test_names_of_bins() -> None:
    assert label([0.625, 0.125, 0.5, 1]) == "t0.625-0.750_s0.125-0.250"
    assert label([0.875, 0.5, 1]) == "t0.875-1.000"
