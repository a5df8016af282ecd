"""The cases of an evaluation: which samples are drawn, and the figures of each case."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvmatch.data.progress import counting
from tvmatch.data.source import to_pictures
from tvmatch.files import write_text
from tvmatch.metrics.collecting import Collected, Job, collect, removed_when_done, share_of
from tvmatch.metrics.features import FeatureNetwork
from tvmatch.metrics.frechet import frechet_distance
from tvmatch.metrics.identity import NEIGHBOURS, same_evaluation
from tvmatch.metrics.kernel import kernel_distance
from tvmatch.metrics.manifold import authenticity, manifold_figures
from tvmatch.metrics.projections import sliced_wasserstein
from tvmatch.metrics.statistics import ReferenceStatistics
from tvmatch.provenance import commit
from tvmatch.sampling import METHODS, Method, seeded_noise
from tvmatch.times import uniform_grid
from tvmatch.training.ranks import Ranks
from tvmatch.training.trained import TrainedRun


@dataclass(frozen=True)
class Case:
    """One set of samples: network calls, guidance scale, seed of the noise."""

    nfe: int
    w: float
    seed: int

    @property
    def name(self) -> str:
        """All digits of w: two scales never share a name."""
        return f"nfe{self.nfe}_w{number(self.w)}_seed{self.seed}"


def number(value: float) -> str:
    """As few digits as tell it from every other: 1 for 1.0, 1.5 for 1.5."""
    return repr(float(value)).removesuffix(".0")


@dataclass(frozen=True)
class Drawer:
    """Draws pictures by number: sample i depends on the seed and i only. Classes come in turn.

    pictures_of  from what the network draws [B, C, h, w] to uint8 [B, H, W, C] (None: it draws pictures itself)
    """

    trained: TrainedRun
    method: Method
    pictures_of: Callable[[Tensor], np.ndarray] | None = None

    def labels(self, numbers: range) -> Tensor:
        classes = self.trained.flow.network.num_classes
        return torch.arange(numbers.start, numbers.stop) % classes if classes else torch.full((len(numbers),), -1)

    def __call__(self, case: Case, numbers: range) -> Tensor:
        """uint8 [len(numbers), H, W, C], on the device where the network draws pictures itself."""
        flow = self.trained.flow
        weight = next(flow.parameters())

        def noise(call: int = 0) -> Tensor:
            return seeded_noise(case.seed, numbers, flow.network.data_shape, call).to(weight)

        fresh = {"fresh": noise} if self.method == "consistency" else {}
        x = METHODS[self.method](flow, noise(), self.labels(numbers), case.w, case.nfe, **fresh)
        return to_pictures(x) if self.pictures_of is None else torch.from_numpy(self.pictures_of(x))

    def grid(self, nfe: int) -> list[float]:
        """The times that `nfe` calls visit."""
        return uniform_grid(nfe)


def run_cases(
    cases: Sequence[Case],
    drawer: Drawer,
    network: FeatureNetwork,
    reference: ReferenceStatistics,
    samples: int,
    folder: Path,
    identity: dict[str, Any],
    ranks: Ranks,
    batch_size: int,
    finish: Callable[[Case, dict[str, Any], Tensor | None], None],
) -> list[dict[str, Any]]:
    """Measure the cases, and return a row of figures for each case of this very evaluation (`identity`) that was ever
    measured, by w, calls and seed. Rows lie in `folder`/rows, and what is there is not computed again; an unfinished
    case continues. Its seconds are those of all attempts.

    `finish(case, row, features)` is called on rank 0 after each new row, and without features (None) for each row that
    is there; it may add to the row.
    """

    def measure(case: Case, collected: Collected) -> dict[str, Any]:
        drawn, measured = collected.seconds, time.perf_counter()
        row: dict[str, Any] = {"nfe": case.nfe, "w": case.w, "seed": case.seed, "commit": commit()}
        row["processes"] = ranks.count
        row |= figures_of(collected, reference, network.device)
        row |= {"seconds_drawing": drawn, "seconds": drawn + time.perf_counter() - measured}
        finish(case, row, collected.features)
        write_row(folder, row, identity)
        return row

    def read() -> dict[str, dict[str, Any]]:
        found = rows_in(folder, identity)
        for case, row in ((case, found[case.name]) for case in cases if case.name in found):
            before = json.dumps(row)
            finish(case, row, None)
            if json.dumps(row) != before:
                write_row(folder, row, identity)
        return found

    rows = ranks.on_main(read)
    missing = [case for case in cases if case.name not in rows]
    with counting(f"samples of {len(missing)} cases", len(missing) * len(share_of(samples, ranks)), ranks.main) as done:
        for case in missing:
            job = Job(case.name, samples, np.arange(samples), identity | {"case": case.name})
            with removed_when_done(folder / "unfinished" / case.name, ranks) as partial:
                collected = collect(
                    lambda numbers, case=case: drawer(case, numbers), network, job, partial, ranks, batch_size, done
                )
                rows[case.name] = ranks.on_main(lambda case=case, collected=collected: measure(case, collected))
    return sorted(rows.values(), key=lambda row: (row["w"], row["nfe"], row["seed"]))


def figures_of(collected: Collected, reference: ReferenceStatistics, device: torch.device) -> dict[str, float]:
    """Every figure of one set of samples."""
    real, generated = reference.features.to(device), collected.features.to(device)
    row = {"frechet": frechet_distance(collected.statistics(), reference.gaussian, device)}
    row["kernel"], row["kernel_deviation"] = kernel_distance(real, generated)
    count = min(len(real), len(generated), NEIGHBOURS)
    everything, real, generated = real, _some(real, count), _some(generated, count)
    row |= manifold_figures(real, generated)._asdict()
    row["authenticity"] = authenticity(everything, generated)
    row["sliced_w2"] = sliced_wasserstein(real, generated)
    return row


def _some(features: Tensor, count: int) -> Tensor:
    """`count` of the features, chosen at random (always the same): data may be sorted by class."""
    if len(features) == count:
        return features
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:count]
    return features[chosen.to(features.device)]


def name_of(row: dict[str, Any]) -> str:
    """The name of a row's case."""
    return Case(row["nfe"], row["w"], row["seed"]).name


def rows_in(folder: Path, identity: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of this evaluation in `folder`/rows, by the names of their cases; others, and what is no row or has
    another case's name, are left out."""
    found = {}
    for path in sorted((folder / "rows").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = json.loads(path.read_text())
            if same_evaluation(saved["identity"], identity) and name_of(saved["row"]) == path.stem:
                found[path.stem] = saved["row"]
    return found


def write_row(folder: Path, row: dict[str, Any], identity: dict[str, Any]) -> None:
    """Write what `rows_in` reads."""
    path = folder / "rows" / f"{name_of(row)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"identity": identity, "row": row}, indent=1) + "\n")


def restore_rows(out: Path, folder: Path, identity: dict[str, Any]) -> None:
    """Rows that `out`, a result of this evaluation, tells and that are not in `folder` (which was removed, or never
    came along with it) are put there: whoever writes `out` anew would lose them."""
    there = rows_in(folder, identity)
    with suppress(OSError, ValueError, KeyError, TypeError):
        for row in json.loads(out.read_text())["by_seed"]:
            if name_of(row) not in there:
                write_row(folder, row, identity)


def averaged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each (nfe, w): means over its seeds, and, of two seeds or more, deviations as NAME_over_seeds."""
    groups: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["nfe"], row["w"]), []).append(row)
    result = []
    for (nfe, w), members in groups.items():
        averages: dict[str, Any] = {"nfe": nfe, "w": w, "seeds": [row["seed"] for row in members]}
        for name in (name for name, value in members[0].items() if isinstance(value, float) and name != "w"):
            values = [row[name] for row in members]
            averages[name] = float(np.mean(values))
            if len(members) > 1 and not name.startswith("seconds"):
                averages[f"{name}_over_seeds"] = float(np.std(values, ddof=1))
        result.append(averages)
    return result
