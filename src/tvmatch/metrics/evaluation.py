"""A whole evaluation of a trained run in the features of a network: figures, pictures, and what pins them.

OUT.json              figures of all that was ever measured there, and the hashes of everything they depend on
OUT/samples_*.png     the first samples of each call's first seed as they come, one column a class
OUT/nearest_*.png     the first of them, each with its nearest training pictures
OUT/table.md, tradeoff.png
OUT/rows, OUT/unfinished, OUT/statistics.safetensors   what a run that was killed continues from
"""

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tvmatch.data.latent_space import picture_maker
from tvmatch.data.source import Source
from tvmatch.files import write_text
from tvmatch.metrics import tradeoff
from tvmatch.metrics.cases import Case, Drawer, averaged, restore_rows, run_cases
from tvmatch.metrics.collecting import hold
from tvmatch.metrics.features import FeatureNetwork, sha256_of
from tvmatch.metrics.frechet import rank_remark
from tvmatch.metrics.gallery import Gallery
from tvmatch.metrics.identity import code, definitions, require_own_folder, require_same
from tvmatch.metrics.kernel import require_torchmetrics
from tvmatch.metrics.manifold import K_DENSITY
from tvmatch.metrics.remarks import assumed_remark, class_counts, class_remark, reference_remarks
from tvmatch.metrics.statistics import (
    IDENTITY,
    KEPT,
    ReferenceStatistics,
    check_statistics,
    gather_statistics,
    made_by,
    pin_of,
    read_statistics,
)
from tvmatch.metrics.training_data import OtherDataError, open_training_data
from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.provenance import commit
from tvmatch.sampling import Method, untaught
from tvmatch.training.checkpoint import read_header
from tvmatch.training.config import Precision
from tvmatch.training.engine import compute_dtype
from tvmatch.training.ranks import Ranks
from tvmatch.training.run_folder import read_config
from tvmatch.training.trained import TrainedRun


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
    """Measure, write everything that the head of this file lists, and return the averaged rows, those of the cases that
    `out` held before among them. Every rank calls it.

    `say` is told on rank 0 what a reader of the figures must know; it is in OUT.json too (`remarks`). `ValueError`
    where `out` holds an evaluation of something else: it is not overwritten.
    """
    require_torchmetrics()
    unseen = [trained.check_w(w) for w in plan.scales]
    folder = out.with_suffix("")
    ranks.on_main(lambda: require_own_folder(out, folder))
    with ExitStack() as stack:
        dtype = _compute_in(trained, plan, ranks)
        drawer = _drawer(trained, plan, ranks)
        if ranks.main:
            stack.callback(_remove_if_empty, folder)  # of a request that was refused
        hold(folder, ranks, stack)
        pins = {
            "checkpoint": _pin_of_checkpoint(trained),
            "features": network.identity(),
            "samples": plan.samples,
            "method": drawer.method,
            "precision": str(dtype or torch.float32).removeprefix("torch."),
            "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
            **code(),
        }
        own = {"statistics": made_by()} if plan.statistics is None else {}
        ranks.on_main(lambda: require_same(out, folder, pins | own))  # before anything is made there
        source, why_not, cropped = _training_data(run, trained)
        if source is not None:
            stack.callback(source.close)
        path, remarks = plan.statistics or folder / "statistics.safetensors", [cropped] if cropped else []
        if plan.statistics is None:
            _make_statistics(path, run, source, why_not, network, plan, ranks)
        reference = read_statistics(path)
        check_statistics(path, reference, network)
        space = trained.latent_space
        drawn = list(trained.flow.network.data_shape) if space is None else [3, space.image_size, space.image_size]
        _check_reference(path, reference, drawn)
        pins |= {"statistics": pin_of(path, reference), **definitions(len(reference.features), plan.samples)}
        ranks.require_equal("before the samples", pins | {"noise": list(plan.seeds)})
        ranks.on_main(lambda: require_same(out, folder, pins))
        ranks.on_main(lambda: restore_rows(out, folder, pins))
        gallery = Gallery(folder, drawer, network, reference, source, plan.samples, plan.seeds[0])
        remarks += _remarks(run, trained, path, reference, network, plan, source, why_not)
        method = plan.method or trained.method
        unseen.append(untaught(trained.objective, method, max(plan.calls)))
        for remark in [*remarks, *filter(None, unseen)] if ranks.main else []:
            say(remark)
        cases = [Case(nfe, w, seed) for w in plan.scales for nfe in plan.calls for seed in plan.seeds]
        rows = run_cases(
            cases, drawer, network, reference, plan.samples, folder, pins, ranks, plan.batch_size, gallery.show
        )
        averages = averaged(rows)
        calls, scales, seeds = (sorted({row[name] for row in rows}) for name in ("nfe", "w", "seed"))
        # of all rows, those of earlier calls among them
        remarks += filter(None, [*map(trained.check_w, scales), untaught(trained.objective, method, max(calls))])
        told = {"run": str(run), **pins, "commit": commit(), "processes": ranks.count, "seeds": seeds}
        told |= {"remarks": remarks, "classes": class_counts(plan.samples, trained.flow.network.num_classes)}
        told |= {"grids": {str(nfe): drawer.grid(nfe) for nfe in calls}, "rows": averages, "by_seed": rows}
        ranks.on_main(lambda: _write(out, folder, told))
    return averages


def _check_reference(path: Path, reference: ReferenceStatistics, drawn: list[int]) -> None:
    """`ValueError` where statistics of these pictures cannot be what samples of that shape are compared with."""
    shape, pictures, kept = reference.provenance["shape"], reference.provenance["pictures"], len(reference.features)
    if shape != drawn:
        remedy = "at that size (--image-size)" if shape[0] == drawn[0] else f"of pictures with {drawn[0]} channel(s)"
        raise ValueError(f"{path} is of pictures {shape}, and this run draws {drawn}. Make statistics {remedy}.")
    if kept <= K_DENSITY:
        remedy = "make it with a larger --keep" if pictures > kept else f"{pictures} pictures are too few"
        raise ValueError(f"{path} keeps {kept} features, and these figures need at least {K_DENSITY + 1}: {remedy}.")


def _write(out: Path, folder: Path, told: dict[str, Any]) -> None:
    write_text(out, json.dumps(told, indent=1) + "\n")
    write_text(folder / "table.md", "\n".join([tradeoff.table(told["rows"]), *told["remarks"]]))
    if not tradeoff.plot(told["rows"], folder / "tradeoff.png"):
        (folder / "tradeoff.png").unlink(missing_ok=True)
    _remove_if_empty(folder / "unfinished")


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _remarks(
    run: Path,
    trained: TrainedRun,
    path: Path,
    reference: ReferenceStatistics,
    network: FeatureNetwork,
    plan: EvaluationPlan,
    source: Source | None,
    why_not: str,
) -> list[str]:
    """What a reader of the figures must know of samples and reference, each a sentence."""
    told = reference.provenance
    remarks = [assumed_remark(network), rank_remark("samples", plan.samples, len(reference.gaussian.mean))]
    trained_on = read_header(trained.checkpoint)["data"] if source is None else source.fingerprint
    same = told["fingerprint"] == trained_on
    remarks += reference_remarks(path.name, reference, len(source) if same and source is not None else None)
    drawn = class_counts(plan.samples, trained.flow.network.num_classes)
    remarks.append(class_remark(drawn, told.get("classes", [])))
    if source is None:
        remarks.append(f"no nearest training pictures are shown: {why_not}.")
    elif not same:
        remarks.append(
            f"{path} is of {told['data']}, not of what {run} was trained on: the figures compare with those pictures, "
            "and no nearest training pictures are shown."
        )
    return [remark for remark in remarks if remark is not None]


def _training_data(run: Path, trained: TrainedRun) -> tuple[Source | None, str, str | None]:
    """The pictures that the run was trained on, or None and the reason why they cannot be used; and what must be said
    of them."""
    if run.is_file():
        return None, f"{run} is a single file, which does not say what it was trained on", None
    if trained.latent_space is not None:
        return None, f"{run} was trained on latents, not on the pictures themselves", None
    if not read_config(run).data:
        return None, f"{run} was imported without data", None
    try:
        source, remark = open_training_data(run, trained)
    except OtherDataError as error:
        return None, str(error), None
    except ValueError as error:
        return None, f"the data of {run} cannot be opened ({error})", None
    return source, "", remark


def _make_statistics(
    path: Path,
    run: Path,
    source: Source | None,
    why_not: str,
    network: FeatureNetwork,
    plan: EvaluationPlan,
    ranks: Ranks,
) -> None:
    """Statistics of the run's own data, unless they are there already, made by this very code."""
    if source is None:
        raise ValueError(f"{why_not}. Give --statistics FILE (tvmatch statistics PICTURES FILE --features ...).")
    there = ranks.on_main(lambda: path.is_file() and read_statistics(path).provenance)
    wanted = {"fingerprint": source.fingerprint, **made_by()}
    by_it = there and all(there["network"][name] == network.identity()[name] for name in IDENTITY)
    if not by_it or any(there.get(name) != value for name, value in wanted.items()):
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
    trained.check_codec(plan.codec)
    if trained.latent_space is None:
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
