"""Reference statistics: what samples are compared with, in one safetensors file that says what it was made of."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tvmatch import __version__
from tvmatch.data.source import Source
from tvmatch.files import replacing
from tvmatch.metrics.collecting import Job, collect, removed_when_done, share_of
from tvmatch.metrics.features import FeatureNetwork, sha256_of
from tvmatch.metrics.frechet import FeatureStatistics
from tvmatch.metrics.stand_ins import stand_ins
from tvmatch.provenance import code_hash
from tvmatch.training.ranks import Ranks

KEY = "tvmatch_statistics"
TOLD = ("data", "fingerprint", "pictures", "shape", "network")  # what a file must say of itself
IDENTITY = ("sha256", "size", "resize", "mean", "deviation")  # of the network that made it
KEPT = 50_000  # features kept by default, among which neighbours are sought: 400 MB of Inception's
# what brings pictures to features and adds them up: fingerprints of folders do not say how pictures are decoded
CODE = ("data", *(f"metrics/{name}.py" for name in ("collecting", "features", "frechet", "stand_ins", "statistics")))
FLAT = 1e-12  # of the squared mean: a variance that is only rounding


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """gaussian    mean and covariance of all pictures' features, float64
    features    [K, D] float32, of some of them, for figures that need neighbours
    indices     [K] their numbers in the data set
    provenance  data set, fingerprint, feature network and preprocessing, versions, hash of the code
    """

    gaussian: FeatureStatistics
    features: Tensor
    indices: np.ndarray
    provenance: dict[str, Any]


def gather_statistics(
    source: Source,
    name: str,
    network: FeatureNetwork,
    out: Path,
    keep: int,
    ranks: Ranks,
    batch_size: int = 500,
    first: int | None = None,
) -> Path:
    """Statistics of the pictures of a source (of the `first` so many), written to `out` by rank 0; a pass that was
    killed continues.

    At most `keep` features are kept, chosen evenly at random (seed 0). `ValueError` for latents, and if all pictures
    have the same features.
    """
    if source.latent_space is not None:
        raise ValueError(f"data {name!r} are latents; give the pictures that they were made of.")
    if keep < 2:
        raise ValueError(f"keep must be at least 2, got {keep}.")
    if first is not None and not 2 <= first <= len(source):
        raise ValueError(f"first must be 2 to {len(source)}, the number of pictures; got {first}.")
    count = len(source) if first is None else first
    kept = np.arange(count)
    if keep < count:
        kept = np.sort(np.random.default_rng(0).permutation(count)[:keep])
    provenance = {
        "data": name,
        "fingerprint": source.fingerprint,
        "pictures": count,
        "of": len(source),  # what the fingerprint is of
        "classes": np.bincount(source.labels[:count], minlength=source.num_classes).tolist()
        if source.num_classes
        else [],
        "shape": list(source.shape),
        "kept": len(kept),
        "network": network.identity(),
        **made_by(),
        "device": _device_name(network.device),
        "processes": ranks.count,
    }
    job = Job(f"features of {count} pictures", count, kept, provenance)
    with removed_when_done(out.with_name(f".{out.name}.parts"), ranks) as folder:
        collected = collect(
            lambda numbers: torch.from_numpy(source.batch(np.arange(numbers.start, numbers.stop))),
            network,
            job,
            folder,
            ranks,
            batch_size,
        )
        bad = torch.tensor(float(stand_ins(source, share_of(count, ranks))), dtype=torch.float64)
        provenance["stand_ins"] = round(ranks.count * float(ranks.mean(bad)))  # of a pass that was killed: those since
        ranks.on_main(lambda: _write(out, collected.statistics(), collected.features, kept, provenance))
    return out


def check_replaceable(out: Path, source: Source, name: str, network: FeatureNetwork, pictures: int, keep: int) -> None:
    """`ValueError` if `out` is there and holds anything but statistics of the same data by the same network, of no more
    pictures and kept features than the new will have: an evaluation may be pinned to it."""
    if not out.exists():
        return
    told = read_statistics(out).provenance
    theirs, ours = told["network"], network.identity()
    if told["fingerprint"] != source.fingerprint or any(theirs[each] != ours[each] for each in IDENTITY):
        held = f"{told['data']!r} by {theirs.get('file', 'a network')}"
        raise ValueError(
            f"{out} holds statistics of {held}, and not of this {name!r} by {network.path.name}; it is not "
            "overwritten. Choose another name, or remove it."
        )
    kept = min(keep, pictures)
    if told["pictures"] > pictures or told["kept"] > kept:
        raise ValueError(
            f"{out} is of {told['pictures']} pictures and keeps the features of {told['kept']}, and this would be of "
            f"{pictures} and keep {kept}; it is not overwritten. Choose another name, or remove it."
        )


def made_by() -> dict[str, str]:
    """What makes statistics here: versions, and the hash of the code."""
    return {
        "tvmatch": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,  # chooses the features that are kept
        "pillow": version("pillow"),  # decodes and resizes pictures
        "code": code_hash(CODE),
    }


def _write(path: Path, gaussian: FeatureStatistics, features: Tensor, kept: np.ndarray, told: dict[str, Any]) -> None:
    if _is_flat(gaussian):
        raise ValueError(
            f"the features of all {gaussian.count} pictures of {told['data']!r} are the same: nothing can be told "
            f"apart by them. Is {told['network']['file']} a feature network, and are these pictures what it takes?"
        )
    tensors = {
        "mean": torch.from_numpy(gaussian.mean),
        "covariance": torch.from_numpy(gaussian.covariance),
        "features": features.contiguous(),
        "indices": torch.from_numpy(kept.astype(np.int64)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(to_safetensors(tensors, {KEY: json.dumps(told, sort_keys=True)}))


def _is_flat(gaussian: FeatureStatistics) -> bool:
    return bool(np.trace(gaussian.covariance) <= FLAT * (gaussian.mean @ gaussian.mean))


def read_statistics(path: Path) -> ReferenceStatistics:
    """What `gather_statistics` wrote; `ValueError` for anything else."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; statistics are a file that `tvmatch statistics` wrote.")
    try:
        with safe_open(path, "pt") as file:
            provenance = json.loads((file.metadata() or {})[KEY])
            mean, covariance, features, indices = (
                file.get_tensor(name) for name in ("mean", "covariance", "features", "indices")
            )
        missing = [name for name in TOLD if name not in provenance]
        missing += [f"network.{name}" for name in IDENTITY if name not in provenance["network"]]
        if missing:
            raise ValueError(f"its provenance lacks {', '.join(missing)}")
        gaussian = FeatureStatistics(mean.numpy(), covariance.numpy(), provenance["pictures"])
        if features.shape != (len(indices), len(mean)) or not bool(features.isfinite().all()):
            raise ValueError(f"its features {list(features.shape)} are not {len(indices)} finite ones of {len(mean)}")
        if _is_flat(gaussian):
            raise ValueError("all its pictures have the same features")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no statistics of `tvmatch statistics` ({error}).") from error
    return ReferenceStatistics(gaussian, features, indices.numpy(), provenance)


def check_statistics(path: Path, statistics: ReferenceStatistics, network: FeatureNetwork) -> None:
    """`ValueError` unless the statistics are of this network, told by its hash, with this preprocessing."""
    theirs, ours = statistics.provenance["network"], network.identity()
    for name in IDENTITY:
        if theirs[name] != ours[name]:
            raise ValueError(
                f"{path} was made with {name}={theirs[name]} of the feature network, and this is {ours[name]}. Give "
                "the same network and preprocessing, or make the statistics anew with `tvmatch statistics`."
            )


def pin_of(path: Path, statistics: ReferenceStatistics) -> dict[str, Any]:
    """What pins the statistics in a result."""
    return {"file": path.name, "sha256": sha256_of(path), **statistics.provenance}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
