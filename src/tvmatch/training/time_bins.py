"""Figures of samples, averaged in bins of their times: where in (t, s) is the loss large, and where does it grow?

Every function is pure and stays on the device: nothing is read by the host before `means`.
"""

from typing import Any

import torch
from torch import Tensor

from tvmatch.objectives import SampleFigures

BINS = 8  # of equal width over [0, 1], along t and along s


def cells(times: int) -> int:
    """The number of bins over one time t (8), or over two, (t, s) (64, of which t >= s leaves 36)."""
    return BINS**times


def cell_index(t: Tensor, s: Tensor | None = None) -> Tensor:
    """The bin of each sample [B], int64: the row of t, and within it the column of s. Time 1 is in the last bin."""
    row = (t * BINS).long().clamp(0, BINS - 1)
    return row if s is None else row * BINS + (s * BINS).long().clamp(0, BINS - 1)


@torch.no_grad()
def binned_sums(samples: SampleFigures) -> Tensor:
    """Sums over a batch, [3, figures, cells] float64: of the finite values, of their number, and of the number of the
    others. A value that is not finite therefore touches no sum."""
    values = torch.stack([value.double() for value in samples.figures.values()])
    index = cell_index(samples.t, samples.s)
    finite = values.isfinite()
    rows = torch.stack([values.where(finite, 0.0), finite.double(), 1 - finite.double()])
    sums = rows.new_zeros(*rows.shape[:2], cells(1 if samples.s is None else 2))
    return sums.index_add_(2, index, rows)


def means(names: list[str], sums: Tensor) -> dict[str, list[list[float]]]:
    """What the bins say of each figure: rows `[t, s, mean, samples]` (without s for bins over t alone), t and s the
    lower edges, the mean to six digits. Bins without samples are absent.

    `sums` is `binned_sums`, added up over batches.
    """
    two = sums.shape[2] > cells(1)
    table: dict[str, list[list[float]]] = {}
    for name, total, count in zip(names, sums[0].tolist(), sums[1].tolist(), strict=True):
        table[name] = [
            [*edges(cell, two), float(f"{value / number:.6g}"), int(number)]
            for cell, (value, number) in enumerate(zip(total, count, strict=True))
            if number
        ]
    return table


def edges(cell: int, two: bool) -> list[float]:
    """The lower edges of a bin: [t, s] of one over two times, [t] of one over t."""
    return [(cell // BINS) / BINS, (cell % BINS) / BINS] if two else [cell / BINS]


def label(row: list[Any]) -> str:
    """The name of a row's bin, `t0.500-0.625_s0.000-0.125`, for one row of `means`."""
    width = 1 / BINS
    return "_".join(f"{time}{low:.3f}-{low + width:.3f}" for time, low in zip("ts", row[:-2], strict=False))
