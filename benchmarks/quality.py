#!/usr/bin/env python3
"""Are the figures of `tvmatch evaluate` right? CIFAR-10's first 10,000 training images against all 50,000.

    python benchmarks/quality.py --data cifar10_train.npz --features inception.pt --json FILE

docs/evaluation.md says where both files come from. The FID is 2.124 (one H200 run); it must come out within
0.01, and as torchmetrics computes it from the same features within 0.1%. Also told: the authenticity of those first
among the other pictures, which is what real pictures that were not trained on have (docs/evaluation.md). Also timed:
features, and all figures of 50,000 samples. Without a GPU take few: --count 300 --first 100 (then no FID is expected).
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvmatch import __version__
from tvmatch.data.arrays import npz_source
from tvmatch.metrics.cases import figures_of
from tvmatch.metrics.collecting import Collected
from tvmatch.metrics.features import FeatureNetwork, Preprocessing
from tvmatch.metrics.frechet import FeatureAccumulator, FeatureStatistics, frechet_distance
from tvmatch.metrics.kernel import require_torchmetrics
from tvmatch.metrics.manifold import authenticity
from tvmatch.metrics.statistics import ReferenceStatistics
from tvmatch.training.ranks import choose_device

EXPECTED, TOLERANCE, AGREEMENT = 2.124, 0.01, 1e-3


class AsTheyAre(nn.Identity):
    """What torchmetrics asks of a feature network, for features that are there already."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.num_features = dimension


def library_distance(first: Tensor, second: Tensor) -> float:
    """The Frechet distance by torchmetrics, of features on the CPU."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=AsTheyAre(first.shape[1]), input_img_size=(first.shape[1],))
    metric.set_dtype(torch.float64)
    metric.update(first.double(), real=True)
    metric.update(second.double(), real=False)
    return float(metric.compute())


def gather(network: FeatureNetwork, images: np.ndarray, batch: int) -> tuple[Tensor, float]:
    """Features [N, D] on the device, and seconds."""
    parts, began = [], time.perf_counter()
    for start in range(0, len(images), batch):
        parts.append(network(torch.from_numpy(np.array(images[start : start + batch]))))
    features = torch.cat(parts)
    features.sum().item()
    return features, time.perf_counter() - began


def statistics_of(features: Tensor, batch: int) -> FeatureStatistics:
    accumulator = FeatureAccumulator()
    for part in features.split(batch):
        accumulator.add(part)
    return accumulator.statistics()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--first", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--commit", default=os.environ.get("COMMIT", ""))
    options = parser.parse_args()
    require_torchmetrics()
    device = choose_device(options.device)
    network = FeatureNetwork(options.features, Preprocessing(), device)
    images = npz_source(options.data).images[: options.count]
    gather(network, images[: options.batch], options.batch)  # plans and kernels are made once
    features, seconds = gather(network, images, options.batch)
    print(f"{len(images) / seconds:.0f} pictures/s through the feature network", flush=True)

    whole, part = statistics_of(features, options.batch), statistics_of(features[: options.first], options.batch)
    began = time.perf_counter()
    ours = frechet_distance(part, whole, device)
    frechet_seconds = time.perf_counter() - began
    print(f"Frechet distance of the first {options.first} against {len(images)}: {ours:.5f}", flush=True)

    began = time.perf_counter()
    accumulator = FeatureAccumulator()
    for batch in features.split(options.batch):
        accumulator.add(batch)
    reference = ReferenceStatistics(whole, features.cpu(), np.arange(len(images)), {})
    row = figures_of(Collected(accumulator, features.cpu()), reference, device)
    figures_seconds = time.perf_counter() - began
    print(f"all figures of {len(images)} samples: {figures_seconds:.1f} s besides drawing and features", flush=True)

    held_out = authenticity(features[options.first :], features[: options.first])
    print(f"authenticity of the first {options.first} among the others: {held_out:.4f}", flush=True)

    library = library_distance(features[: options.first].cpu(), features.cpu())
    print(f"the same by torchmetrics: {library:.5f}", flush=True)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "tvmatch": __version__,
        "commit": options.commit,
        "features": network.identity(),
        "count": len(images),
        "first": options.first,
        "frechet": ours,
        "expected": EXPECTED if (options.count, options.first) == (50_000, 10_000) else None,
        "torchmetrics": library,
        "relative_difference": abs(ours - library) / library,
        "pictures_per_second": len(images) / seconds,
        "frechet_seconds": frechet_seconds,
        "figures_seconds": figures_seconds,
        "authenticity_of_the_first_among_the_others": held_out,
        "figures_of_the_data_against_itself": row,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    if result["relative_difference"] > AGREEMENT:
        raise SystemExit(f"torchmetrics gives {library:.6f}, this {ours:.6f}: more than {AGREEMENT:.1%} apart.")
    if result["expected"] is not None and abs(ours - EXPECTED) > TOLERANCE:
        raise SystemExit(f"the FID is {ours:.4f}; {EXPECTED} +- {TOLERANCE} was expected.")


if __name__ == "__main__":
    main()
