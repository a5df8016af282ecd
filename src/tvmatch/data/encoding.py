"""Encode a data set of pictures into shards of latents, so that it can be killed at any moment and started again.

OUT/plan.json            what is encoded, with which codec, into which shards; written first, compared by a restart
OUT/shards/NAME.tar      latents of the pictures k S .. (k + 1) S - 1 of the source, without those that cannot be used
OUT/shards/NAME.json     what is in it: written after its shard, so a shard without it is made again
OUT/labels.npy           int64 [2, M]: the number of each picture in the source, and its class (-1: none)
OUT/manifest.json        written last: counts, checksums, mean and deviation of each channel, round-trip PSNR

A shard depends on its pictures, the codec and the machine alone: batches never reach across two shards, and no file
holds a time or a name of a process. So a run that was killed ends with the same bytes as one that was not.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvmatch.data.codecs import Codec
from tvmatch.data.latent_shards import sample_bytes, shard_name, write_shard
from tvmatch.data.naming import named
from tvmatch.data.source import DataError, PictureReader, to_pictures, to_unit_range
from tvmatch.files import replacing, write_text

FORMAT = "tvmatch-latents-1"
MEASURED = 2000  # pictures, at most, whose round trip is measured
FLOAT16_LIMIT = 65504.0


@dataclass(frozen=True)
class EncodingPlan:
    """What is encoded, and how. Two runs with the same plan write the same files."""

    source: str  # SHA-256 of the data set
    pictures: int  # in the data set, usable or not
    class_names: tuple[str, ...]
    image_size: int
    codec: str
    codec_hash: str
    shape: tuple[int, int, int]  # of one latent
    has_deviation: bool
    flips: bool  # whether mirrored pictures are encoded, too
    batch_size: int
    shard_size: int  # pictures a shard
    precision: str  # float32 or bfloat16
    format: str = FORMAT

    @property
    def shards(self) -> int:
        return -(-self.pictures // self.shard_size)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Of one sample's array in a shard."""
        return (1 + self.flips, 1 + self.has_deviation, *self.shape)

    @property
    def measured(self) -> int:
        """The round trip of every so many-th picture is measured."""
        return max(1, self.pictures // MEASURED)

    def indices(self, shard: int) -> range:
        """The pictures of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.pictures))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def make_plan(
    reader: PictureReader, codec: Codec, flips: bool, batch_size: int, shard_size: int, precision: str
) -> EncodingPlan:
    """The plan for a data set and a codec; raises for pictures that the codec cannot divide, and for a precision that
    it does not have."""
    channels, height, _ = reader.shape
    if codec.spec == "pixels" and precision != "float32":
        raise DataError(f"codec 'pixels' computes nothing that {precision} could speed up; leave --precision out.")
    if channels != 3 and codec.spec != "pixels":
        raise DataError(f"codec {codec.spec!r} encodes colour pictures; these have {channels} channel.")
    if height % codec.factor:
        raise DataError(
            f"pictures of {height} pixels: codec {codec.spec!r} needs multiples of {codec.factor}; choose for example "
            f"--image-size {max(1, height // codec.factor) * codec.factor}."
        )
    return EncodingPlan(
        source=reader.fingerprint,
        pictures=len(reader),
        class_names=tuple(reader.class_names),
        image_size=height,
        codec=codec.spec,
        codec_hash=codec.hash,
        shape=(codec.channels, height // codec.factor, height // codec.factor),
        has_deviation=codec.has_deviation,
        flips=flips,
        batch_size=batch_size,
        shard_size=shard_size,
        precision=precision,
    )


def claim_plan(out: Path, plan: EncodingPlan) -> EncodingPlan:
    """Make OUT and write the plan there, or find the same plan in it; returns the plan to go on with, which calls a
    codec that has moved as the earlier one did. `DataError` if OUT holds anything else."""
    path = out / "plan.json"
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a new folder.")
    if path.is_file():
        try:
            earlier = json.loads(path.read_text("utf-8"))
            if earlier["codec_hash"] == plan.codec_hash:  # its name is in the manifest, by which runs know the data
                plan = dataclasses.replace(plan, codec=earlier["codec"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged; give a new folder, or remove this one.") from error
        for key, value in json.loads(plan.to_json()).items():
            if earlier.get(key) != value:
                old, new = (f"{str(shown)[:60]}" for shown in (earlier.get(key), value))
                raise DataError(
                    f"{out} holds an encoding with {key}={old}, and this command says {new}. Give the same options to "
                    "continue it, or another folder."
                )
        return plan
    if out.exists() and any(entry.name != ".plan.json.tmp" for entry in out.iterdir()):
        raise DataError(f"{out} holds other files; give a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, plan.to_json())
    return plan


def check_nothing_skipped(out: Path, plan: EncodingPlan) -> None:
    """Raise `DataError` if the shards that are finished lack pictures: they are not read again, so a strict run that
    continues one that was not would let them pass."""
    records = [finished_shard(out / "shards", shard) for shard in range(plan.shards)]
    skipped = [tuple(entry) for record in records if record is not None for entry in record["skipped"]]
    if skipped:
        raise DataError(
            f"{out}: an earlier run without --strict skipped {named(skipped)}. Mend or remove these and encode into a "
            "new folder, or leave --strict out."
        )


def encode_shards(
    reader: PictureReader,
    codec: Codec,
    plan: EncodingPlan,
    out: Path,
    device: torch.device,
    rank: int = 0,
    ranks: int = 1,
    done: Callable[[int, int], None] = lambda pictures, encoded: None,
) -> None:
    """Encode the shards of this rank (every `ranks`-th) that are not there as they were written; `done(pictures,
    encoded)` after each batch, with the pictures it took and those encoded just now (0 for a shard that was there)."""
    folder = out / "shards"
    folder.mkdir(exist_ok=True)
    for shard in range(rank, plan.shards, ranks):
        if finished_shard(folder, shard, compared=True) is not None:
            done(len(plan.indices(shard)), 0)
            continue
        _encode_shard(reader, codec, plan, folder, shard, device, done)


def finished_shard(folder: Path, shard: int, compared: bool = False) -> dict[str, Any] | None:
    """What a finished shard says of itself; None if it is not there whole: by its size, and if `compared` its bytes."""
    path = folder / shard_name(shard)
    try:
        record = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if compared and hashlib.sha256(path.read_bytes()).hexdigest() != record["sha256"]:
            return None
        return record if os.path.getsize(path) == record["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _encode_shard(
    reader: PictureReader,
    codec: Codec,
    plan: EncodingPlan,
    folder: Path,
    shard: int,
    device: torch.device,
    done: Callable[[int, int], None],
) -> None:
    """Write one shard and then its record."""
    indices, labels, arrays, skipped, decibels = [], [], [], [], []
    sums = np.zeros((3, plan.shape[0]))  # of the mean, its square and the variance, over every element of a channel
    for batch, results in _batches(reader, plan, shard):
        usable = [(index, result) for index, result in zip(batch, results, strict=True) if not isinstance(result, str)]
        skipped += [[reader.name(i), text] for i, text in zip(batch, results, strict=True) if isinstance(text, str)]
        if usable:
            pictures = np.stack([picture for _, picture in usable])
            numbers = [index for index, _ in usable]
            encoded, measured = _encode(codec, plan, pictures, numbers, device)
            decibels += [[number, value] for number, value in measured]
            half = encoded.astype(np.float16)
            stored = half.astype(np.float64)  # the statistics are of what will be read
            sums[0] += stored[:, :, 0].sum((0, 1, 3, 4))
            sums[1] += np.square(stored[:, :, 0]).sum((0, 1, 3, 4))
            if plan.has_deviation:
                sums[2] += np.square(stored[:, :, 1]).sum((0, 1, 3, 4))
            indices += numbers
            labels += [int(reader.labels[index]) for index in numbers]
            arrays += list(half)
        done(len(batch), len(usable))
    path = folder / shard_name(shard)
    with replacing(path) as file:
        write_shard(file, indices, labels, arrays)
    content = path.read_bytes()
    record = {
        "file": f"shards/{path.name}",
        "pictures": len(indices),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "indices": indices,
        "labels": labels,
        "skipped": skipped,
        "sums": sums.tolist(),
        "decibels": decibels,
    }
    write_text(path.with_suffix(".json"), json.dumps(record) + "\n")


def _batches(
    reader: PictureReader, plan: EncodingPlan, shard: int
) -> Iterator[tuple[list[int], list[np.ndarray | str]]]:
    """The pictures of a shard in batches; the next one is decoded while the last is encoded."""
    indices = list(plan.indices(shard))
    batches = [indices[start : start + plan.batch_size] for start in range(0, len(indices), plan.batch_size)]
    with ThreadPoolExecutor(1, thread_name_prefix="tvmatch-read") as ahead:
        pending = ahead.submit(reader.read, np.array(batches[0]))
        for number, batch in enumerate(batches):
            results = pending.result()
            if number + 1 < len(batches):
                pending = ahead.submit(reader.read, np.array(batches[number + 1]))
            yield batch, results


@torch.no_grad()
def _encode(
    codec: Codec, plan: EncodingPlan, pictures: np.ndarray, numbers: list[int], device: torch.device
) -> tuple[np.ndarray, list[tuple[int, float | None]]]:
    """float32 [B, F, M, C, h, w] of pictures uint8 [B, H, W, 3], and (number, PSNR) of those that are measured."""
    if pictures.shape[-1] == 1:
        pictures = pictures.repeat(3, axis=-1)
    x = to_unit_range(torch.from_numpy(pictures).to(device))
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bfloat16")
    views = [x, x.flip(3)] if plan.flips else [x]
    encoded = []
    with mixed:
        for view in views:
            posterior = codec.encode(view)
            parts = [posterior.mean, posterior.deviation] if plan.has_deviation else [posterior.mean]
            encoded.append(torch.stack([part.float() for part in parts], 1))
        chosen = [place for place, number in enumerate(numbers) if number % plan.measured == 0]
        decoded = codec.decode(encoded[0][chosen, 0]).float() if chosen else None
    latents = torch.stack(encoded, 1)
    largest = float(latents.abs().max())
    if not largest <= FLOAT16_LIMIT:  # true for NaN, too
        raise DataError(
            f"codec {codec.spec!r} gave latents up to {largest} for the pictures from number {numbers[0]} on; float16 "
            "holds up to 65504. Look at these pictures, or encode with --precision float32."
        )
    measured: list[tuple[int, float | None]] = []
    if decoded is not None:
        back = to_pictures(decoded).cpu().numpy()
        for place, picture in zip(chosen, back, strict=True):
            measured.append((numbers[place], psnr(pictures[place], picture)))
    return latents.cpu().numpy(), measured


def psnr(picture: np.ndarray, other: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio of two uint8 pictures in dB, 10 log10(255^2 / mean squared error); None if equal."""
    error = float(np.square(picture.astype(np.float64) - other.astype(np.float64)).mean())
    return 10 * math.log10(255**2 / error) if error else None


def check_size(plan: EncodingPlan, out: Path) -> None:
    """Raise `DataError` before hours of work if the disk has no room for what is still missing."""
    folder = out if out.exists() else out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder) if hasattr(os, "statvfs") else None
    there = sum(entry.stat().st_size for entry in (out / "shards").glob("*.tar")) if out.exists() else 0
    needed = plan.pictures * sample_bytes(plan.array_shape) - there
    if status is not None and needed > status.f_bavail * status.f_frsize:
        free = status.f_bavail * status.f_frsize
        raise DataError(
            f"{out}: {needed / 2**30:.1f} GiB are still to be written, but only {free / 2**30:.1f} GiB are free there."
        )
