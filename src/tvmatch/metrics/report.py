"""The figures of a trained run: Frechet distance in pixel values, and for digits the share that a judge reads right."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvmatch import __version__
from tvmatch.data.source import to_pictures
from tvmatch.metrics.features import sha256_of
from tvmatch.metrics.frechet import rank_remark
from tvmatch.metrics.own_values import OwnValues
from tvmatch.metrics.remarks import class_counts, class_remark
from tvmatch.metrics.stand_ins import stand_in_remark, stand_ins
from tvmatch.metrics.training_data import OtherDataError, open_training_data
from tvmatch.sampling import Method, draw, untaught
from tvmatch.training.checkpoint import read_header
from tvmatch.training.run_folder import read_config
from tvmatch.training.trained import TrainedRun


def evaluate_run(
    run: Path,
    trained: TrainedRun,
    calls: Sequence[int],
    scales: Sequence[float],
    samples: int,
    seed: int,
    method: Method | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row of figures for each guidance scale and number of network calls.

    The Frechet distance is that of Gaussians fitted to the pixel values (0..1) of the samples and of the training
    data, or to their latents: exact, but no FID. Digits are also read by `DigitsJudge`. `say` is told what a reader of
    the figures must know.
    """
    if samples < 2:
        raise ValueError(f"a Frechet distance needs at least 2 samples, got {samples}.")
    if not calls or min(calls) < 1:  # before the first figure, which may take minutes
        raise ValueError(f"nfe must be one number of network calls or more, each at least 1; got {list(calls)}.")
    if not scales:
        raise ValueError("no guidance scale w was given.")
    for name, values in (("nfe", calls), ("w", scales)):
        if len(set(values)) != len(values):
            raise ValueError(f"{name} must be given without repetition; got {list(values)}.")
    unseen = [trained.check_w(w) for w in scales]
    config = read_config(run)
    if not config.data:
        raise ValueError(f"{run} was imported without data to compare with; import it again with --data.")
    try:
        source, cropped = open_training_data(run, trained)
    except OtherDataError as error:
        raise ValueError(
            f"{error}. Restore it; a relative path counts from the folder in which the run was started."
        ) from error
    with contextlib.closing(source):
        method = method or trained.method
        classes = trained.flow.network.num_classes
        label = torch.arange(samples) % classes if classes else torch.full((samples,), -1)
        pictures = "pictures" if source.latent_space is None else "latents"
        held = np.bincount(source.labels, minlength=classes).tolist() if classes else []
        told = [
            rank_remark("samples", samples, int(np.prod(source.shape))),
            rank_remark(pictures, len(source), int(np.prod(source.shape))),
            class_remark(class_counts(samples, classes), held),
            cropped,
            untaught(trained.objective, method, max(calls)),
            *unseen,
        ]
        judge = None
        if config.data == "digits":
            from tvmatch.metrics.judge import DigitsJudge  # scikit-learn takes a second to import

            judge = DigitsJudge()
        real = OwnValues(source)
        rows = []
        for w in scales:
            for nfe in calls:
                x = draw(trained.flow, label, w, nfe, seed=seed, method=method)
                drawn = to_pictures(x).numpy() if source.latent_space is None else x.numpy()
                row: dict[str, Any] = {"nfe": nfe, "w": w}
                if judge is not None:
                    row["class_accuracy"] = judge.class_accuracy(drawn, label.numpy())
                row["frechet"] = real.distance(drawn)
                rows.append(row)
        for remark in filter(None, (*told, stand_in_remark(config.data, stand_ins(source)))):
            say(remark)
    return rows


def pins_of(trained: TrainedRun, samples: int, seed: int, method: str | None = None) -> dict[str, Any]:
    """What rows of `evaluate_run` depend on, as JSON values."""
    return {
        "checkpoint": str(trained.checkpoint),
        "sha256": sha256_of(trained.checkpoint),
        "step": trained.step,
        "ema": trained.ema,
        "data": read_header(trained.checkpoint)["data"],
        "features": "pixels" if trained.latent_space is None else "latents",
        "samples": samples,
        "seed": seed,
        "method": method or trained.method,
        "torch": torch.__version__,
        "tvmatch": __version__,
    }
