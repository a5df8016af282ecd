#!/usr/bin/env python3
"""How fast data reaches the device, and how long training waits for it.

    python benchmarks/data.py --json benchmarks/results/data_<gpu>.json       (a machine with a GPU and 16 cores)
    python benchmarks/data.py --tiny                                          (a CPU: does it run)

Three sources, each through the `Prefetcher` that training uses, onto the device: arrays of 32x32 pictures, latents of
4x32x32 from shards (with a deviation and mirrored ones, noise drawn), and JPEG files of 500x350 pixels, quality 90,
decoded to 256x256, by threads and by processes. Then training itself, where the share of its time is counted that it
spends waiting for a batch. Everything is made here, in a temporary folder; files are warm in the system's cache.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

import tvmatch.training.loop as loop
from tvmatch import __version__
from tvmatch.data import InMemorySource, Prefetcher, ShuffledStream, Source, StreamedSource
from tvmatch.data.codecs import Posterior
from tvmatch.data.encoding import claim_plan, encode_shards, make_plan
from tvmatch.data.encoding_manifest import write_manifest
from tvmatch.data.latents import LatentsSource
from tvmatch.data.listing import folder_records
from tvmatch.files import write_text
from tvmatch.training.config import TrainConfig

BARS = {"arrays": 15_000, "latents": 3_000, "jpeg": 1_500}  # samples a second
WAITING_BAR = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each rate")
    parser.add_argument("--cases", nargs="*", default=["rates", "training"], choices=["rates", "training"])
    parser.add_argument("--commit", default="", help="recorded in the file; default: what git says")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    cores = len(os.sched_getaffinity(0))
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cores": cores,
        "torch": torch.__version__,
        "tvmatch": __version__,
        "commit": options.commit or git.stdout.strip(),
        "rows": [],
    }
    print(f"{result['device']}, {cores} cores, torch {torch.__version__}", flush=True)

    def keep(row: dict) -> None:
        result["rows"].append(row)
        print(
            "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_text(options.json, json.dumps(result, indent=1) + "\n")

    seconds = 0.3 if options.tiny else options.seconds
    with tempfile.TemporaryDirectory() as folder:
        arrays = array_source(500 if options.tiny else 50_000)
        latents = latent_source(Path(folder) / "latents", 64 if options.tiny else 8192)
        if "rates" in options.cases:
            batch = 16 if options.tiny else 512
            keep(rate("arrays", "32x32 pictures in memory", arrays, batch, seconds, device))
            keep(rate("latents", "4x32x32 from shards", latents, batch, seconds, device))
            files = jpeg_folder(Path(folder) / "jpeg", 16 if options.tiny else 1024)
            for workers in ("threads", "processes"):
                with StreamedSource(folder_records(files), 256, workers=workers) as jpeg:
                    keep(rate("jpeg", f"500x350 to 256x256, {workers}", jpeg, batch // 2, seconds, device))
        if "training" in options.cases:
            for name, source in (("arrays 3x32x32", arrays), ("latents 4x32x32", latents)):
                keep(waiting(name, source, Path(folder) / f"run {name}", device, options.tiny))


def rate(kind: str, what: str, source: Source, batch: int, seconds: float, device: torch.device) -> dict:
    """Samples a second that arrive on the device, taken as fast as they come, after a first few batches."""
    stream = ShuffledStream(len(source), batch, seed=0)
    with Prefetcher(source, stream, device=device, flip=True) as batches:
        for _ in range(4):
            samples, _ = next(batches)
        _wait(device)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            samples, _ = next(batches)
            count += len(samples)
        _wait(device)
        taken = time.perf_counter() - began
    return {"source": kind, "what": what, "batch": batch, "per_second": count / taken, "bar": BARS[kind]}


def waiting(name: str, source: Source, run: Path, device: torch.device, tiny: bool) -> dict:
    """The share of a training run's time, from its 31st step on, that the loop spends waiting for a batch."""
    steps, first = (5, 2) if tiny else (110, 30)
    marks: dict[int, tuple[float, float]] = {}

    class Watched(Prefetcher):
        """Notes the time and the seconds waited at two steps."""

        taken = 0

        def __next__(self) -> tuple[Tensor, Tensor]:
            batch = super().__next__()
            self.taken += 1
            if self.taken in (first, steps):
                _wait(device)
                marks[self.taken] = time.perf_counter(), self.waited
            return batch

    config = TrainConfig(
        run=run,
        network="DiT-Digits/4" if tiny else "DiT-S/4",
        batch_size=8 if tiny else 1024,
        flip=True,
        steps=steps,
        log_every=20,
        sample_every=0,
        checkpoint_every=10_000,
        learning_rate=1e-4,
        device=device.type,
    )
    original, loop.Prefetcher = loop.Prefetcher, Watched
    try:
        loop.train(config, source=source, show=False)
    finally:
        loop.Prefetcher = original
    seconds, waited = (late - early for late, early in zip(marks[steps], marks[first], strict=True))
    return {
        "source": "training",
        "what": f"{config.network} on {name}",
        "batch": config.batch_size,
        "per_second": (steps - first) * config.batch_size / seconds,
        "waiting_share": waited / seconds,
        "bar": WAITING_BAR,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def array_source(count: int) -> InMemorySource:
    random = np.random.default_rng(0)
    names = tuple(str(label) for label in range(10))
    images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return InMemorySource(images, random.integers(0, 10, count), names)


class FourChannels:
    """A codec for the benchmark: cheap, with the shape of SD-VAE's latents."""

    spec, hash, channels, factor, has_deviation = "benchmark", "0" * 64, 4, 1, True

    def encode(self, x: Tensor) -> Posterior:
        mean = torch.cat([x, x.mean(1, keepdim=True)], 1)
        return Posterior(mean, torch.full_like(mean, 0.1))

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3]


def latent_source(folder: Path, count: int) -> LatentsSource:
    reader, codec = array_source(count), FourChannels()
    plan = make_plan(reader, codec, flips=True, batch_size=256, shard_size=1000, precision="float32")
    claim_plan(folder, plan)
    encode_shards(reader, codec, plan, folder, torch.device("cpu"))
    write_manifest(folder, plan)
    return LatentsSource(folder)


def jpeg_folder(folder: Path, count: int) -> Path:
    """Crops of scikit-learn's two photographs."""
    folder.mkdir()
    random = np.random.default_rng(0)
    photographs = load_sample_images().images
    for number in range(count):
        top, left = random.integers(0, [427 - 350, 640 - 500])
        crop = photographs[number % 2][top : top + 350, left : left + 500]
        Image.fromarray(crop).save(folder / f"{number:05d}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
