"""What a run measures of its own steps: means, figures by time, and which steps were skipped (docs/stability.md).

Everything is added up on the device; the host waits only when it reads, at the steps that are logged.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from tvmatch.objectives import StepLoss
from tvmatch.training.skipping import SkippedSteps
from tvmatch.training.time_bins import binned_sums, label, means

ByTime = dict[str, list[list[float]]]  # figure -> rows [t, s, mean, samples] or [t, mean, samples]


@dataclass(frozen=True)
class Reading:
    """What the steps since the last reading have shown. Means are over the steps that were not skipped."""

    steps: int  # skipped ones included
    skipped: int  # of them
    skipped_total: int  # of the whole run
    longest_row: int  # skipped steps in a row, at most
    figures: dict[str, float] = field(default_factory=dict)  # empty if every step was skipped
    by_time: ByTime = field(default_factory=dict)
    not_finite_by_time: ByTime = field(default_factory=dict)  # number of samples whose figure was not finite
    last_skipped: dict[str, float] = field(default_factory=dict)  # the figures of the last step that was skipped
    last_skipped_step: int = -1

    def scalars(self) -> dict[str, float]:
        """The figures of metrics.jsonl and of TensorBoard."""
        return {
            **self.figures,
            "skipped_share": self.skipped / max(self.steps, 1),
            "skipped_total": self.skipped_total,
        }

    def tables(self) -> dict[str, ByTime]:
        """What metrics.jsonl says by time."""
        tables = {"by_time": self.by_time, "not_finite_by_time": self.not_finite_by_time}
        return {name: table for name, table in tables.items() if table}

    def scalars_by_time(self) -> dict[str, float]:
        """The tables once more, one figure a bin, under the names that TensorBoard shows."""
        return {f"{name}_by_time/{label(row)}": row[-2] for name, rows in self.by_time.items() for row in rows}

    def skipped_text(self) -> str:
        """The last skipped step, in words."""
        listed = ", ".join(f"{name} {value:.4g}" for name, value in self.last_skipped.items())
        return f"step {self.last_skipped_step}: {listed}"


class Instruments:
    """Use once a step: `observe` every batch of it, then `decide` with the gradient's norm; `read` now and then.

    Among `ranks` processes all must decide and read together; the figures are then means over them.
    """

    def __init__(self, skipped: SkippedSteps, ranks: int = 1) -> None:
        self.skipped, self.ranks = skipped, ranks
        self.device = skipped.total.device
        self.names: list[str] = []
        self.bin_names: list[list[str]] = []
        self._observed: list[tuple[Tensor, list[Tensor]]] = []
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self._sums: Tensor | None = None  # [figures]
        self._bins: list[Tensor] = []  # [3, figures, cells] for each group of `StepLoss.samples`
        self._used = torch.zeros((), dtype=torch.int64, device=self.device)
        self._last_skipped: Tensor | None = None  # [figures and the step]

    @torch.no_grad()
    def observe(self, result: StepLoss) -> None:
        """Take in the loss of one batch, or of one of several that a step accumulates."""
        self.names = ["loss", *result.terms, "gradient_norm"]
        self.bin_names = [list(samples.figures) for samples in result.samples]
        figures = torch.stack([result.loss.detach(), *result.terms.values()]).double()
        self._observed.append((figures, [binned_sums(samples) for samples in result.samples]))

    @torch.no_grad()
    def decide(self, gradient_norm: Tensor, step: int) -> Tensor:
        """End the step: 1 if it must be skipped, 0 if not (`SkippedSteps.decide`)."""
        figures = torch.stack([figures for figures, _ in self._observed]).mean(0)
        figures = torch.cat([figures, gradient_norm.detach().double().reshape(1)])
        bins = [torch.stack(parts).sum(0) for parts in zip(*(parts for _, parts in self._observed), strict=True)]
        self._observed.clear()
        skip = self.skipped.decide(figures, shared=self.ranks > 1)
        good, with_step = 1 - skip.long(), torch.cat([figures, torch.full_like(figures[:1], step)])
        if self._sums is None or self._last_skipped is None:
            self._sums, self._last_skipped = torch.zeros_like(figures), torch.full_like(with_step, -1)
            self._bins = [torch.zeros_like(part) for part in bins]
        self.steps += 1
        self._used += good
        self._sums += figures.where(good == 1, 0.0)
        self._last_skipped = with_step.where(good == 0, self._last_skipped)
        for total, part in zip(self._bins, bins, strict=True):
            total[:2] += part[:2] * good
            total[2] += part[2]
        return skip

    def read(self) -> Reading:
        """What was measured since the last reading; begins the next one. The host waits for the device."""
        if self._sums is None or self._last_skipped is None:
            return Reading(0, 0, int(self.skipped.total), int(self.skipped.longest))
        used = int(self._used)
        sums, bins = self._over_ranks(self._sums), [self._over_ranks(part).cpu() for part in self._bins]
        figures: dict[str, float] = {}
        if used:
            figures = dict(zip(self.names, (sums / (used * self.ranks)).tolist(), strict=True))
            for names, part in zip(self.bin_names, bins, strict=True):
                for name, value in zip(names, (part[0].sum(1) / part[1].sum(1)).tolist(), strict=True):
                    if name not in figures and math.isfinite(value):  # a norm, say, that is no part of the loss
                        figures[name] = value
        by_time, not_finite = {}, {}
        for names, part in zip(self.bin_names, bins, strict=True):
            by_time |= means(names, part)
            not_finite |= means(names, part[[2, 2]])
        *last, last_step = (self._over_ranks(self._last_skipped) / self.ranks).tolist()
        reading = Reading(
            steps=self.steps,
            skipped=self.steps - used,
            skipped_total=int(self.skipped.total),
            longest_row=int(self.skipped.longest),
            figures=figures,
            by_time={name: rows for name, rows in by_time.items() if rows},
            not_finite_by_time={
                name: [[*row[:-2], row[-1]] for row in rows] for name, rows in not_finite.items() if rows
            },
            last_skipped=dict(zip(self.names, last, strict=True)) if last_step >= 0 else {},
            last_skipped_step=int(last_step),
        )
        self.skipped.forget()
        self._clear()
        return reading

    def _over_ranks(self, sums: Tensor) -> Tensor:
        if self.ranks > 1:
            dist.all_reduce(sums)
        return sums
