"""The figures of a trained run: Frechet distance in pixel values, and for digits the share that a judge reads right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvmatch import __version__
from tvmatch.data.opening import open_source
from tvmatch.data.source import to_pictures
from tvmatch.metrics.features import sha256_of
from tvmatch.metrics.frechet import FeatureStatistics, frechet_distance
from tvmatch.sampling import draw
from tvmatch.training.checkpoint import read_header
from tvmatch.training.run_folder import read_config
from tvmatch.training.trained import TrainedRun

LARGEST_DIMENSION = 3 * 64 * 64  # beyond it a covariance of pixel values is too large to be of use


def evaluate_run(
    run: Path,
    trained: TrainedRun,
    calls: Sequence[int],
    scales: Sequence[float],
    samples: int,
    seed: int,
    method: str | None = None,
) -> list[dict[str, Any]]:
    """One row of figures for each guidance scale and number of network calls.

    The Frechet distance is that of Gaussians fitted to the pixel values (0..1) of the samples and of the training
    data, or to their latents: exact and quick, but no FID. Digits are also read by `DigitsJudge`.
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
    for w in scales:
        trained.check_w(w)
    config = read_config(run)
    if not config.data:
        raise ValueError(f"{run} was imported without data to compare with; import it again with --data.")
    source = open_source(config.data, config.image_size, config.strict)
    if source.shape != trained.flow.network.data_shape:
        raise ValueError(f"{config.data} now holds pictures {source.shape}; this run was trained on others.")
    if source.fingerprint != read_header(trained.checkpoint)["data"]:
        raise ValueError(
            f"data {config.data!r} is not what {run} was trained on. Restore it; a relative path counts from the "
            "folder in which the run was started."
        )
    if int(np.prod(source.shape)) > LARGEST_DIMENSION:
        raise ValueError(f"pictures of {source.shape} are too large for a Frechet distance of pixel values.")
    real = _pixel_statistics(source.batch(np.arange(len(source))))
    classes = trained.flow.network.num_classes
    label = torch.arange(samples) % classes if classes else torch.full((samples,), -1)
    judge = None
    if config.data == "digits":
        from tvmatch.metrics.judge import DigitsJudge  # scikit-learn takes a second to import

        judge = DigitsJudge()
    rows = []
    for w in scales:
        for nfe in calls:
            x = draw(trained.flow, label, w, nfe, seed=seed, method=method or trained.method)
            pictures = to_pictures(x).numpy() if source.latent_space is None else x.numpy()
            row: dict[str, Any] = {"nfe": nfe, "w": w}
            if judge is not None:
                row["class_accuracy"] = judge.class_accuracy(pictures, label.numpy())
            row["frechet"] = frechet_distance(_pixel_statistics(pictures), real)
            rows.append(row)
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


def _pixel_statistics(pictures: np.ndarray) -> FeatureStatistics:
    """Of uint8 pictures, scaled to 0..1, or of latents as they are."""
    features = pictures.reshape(len(pictures), -1).astype(np.float64)
    return FeatureStatistics.from_features(features / 255 if pictures.dtype == np.uint8 else features)
