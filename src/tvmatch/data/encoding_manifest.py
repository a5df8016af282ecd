"""What an encoded data set says of itself when all of its shards are there: OUT/labels.npy and OUT/manifest.json."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tvmatch.data.encoding import EncodingPlan, finished_shard
from tvmatch.data.latent_shards import shard_name
from tvmatch.data.latent_space import LatentSpace
from tvmatch.data.naming import named
from tvmatch.data.source import DataError
from tvmatch.files import replacing, write_text


def write_manifest(out: Path, plan: EncodingPlan, listed: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """Put the records of all shards together into labels.npy and manifest.json; returns the manifest.

    `listed` are (name, reason) of what the source left out before it was read. Raises `DataError` if a shard is
    missing, or not one picture can be used.
    """
    records = [finished_shard(out / "shards", shard) for shard in range(plan.shards)]
    missing = [shard_name(shard) for shard, record in enumerate(records) if record is None]
    if missing:
        raise DataError(f"{out}: {missing[0]} is not there ({len(missing)} are missing); run the same command again.")
    skipped = [*map(list, listed), *(entry for record in records for entry in record["skipped"])]
    count = sum(record["pictures"] for record in records)
    if not count:
        raise DataError(f"{out}: no picture can be used; skipped {named([tuple(entry) for entry in skipped])}.")
    table = np.array([[i for r in records for i in r["indices"]], [n for r in records for n in r["labels"]]], np.int64)
    with replacing(out / "labels.npy") as file:
        np.lib.format.write_array(file, table, version=(1, 0), allow_pickle=False)
    space = LatentSpace(plan.codec, plan.codec_hash, plan.shape, plan.image_size, *_statistics(plan, records, count))
    decibels = [value for record in records for _, value in record["decibels"]]
    finite = [value for value in decibels if value is not None]
    manifest = {
        "format": plan.format,
        "pictures": {"in_the_source": plan.pictures, "encoded": count, "skipped": len(skipped)},
        "latent_space": space.to_header(),
        "array_shape": plan.array_shape,
        "flips": plan.flips,
        "has_deviation": plan.has_deviation,
        "class_names": plan.class_names,
        "pictures_of_class": np.bincount(table[1][table[1] >= 0], minlength=len(plan.class_names)).tolist(),
        "psnr": {
            "pictures": len(decibels),
            "exact": len(decibels) - len(finite),
            "mean": float(np.mean(finite)) if finite else None,
            "lowest": min(finite, default=None),
        },
        "labels_sha256": hashlib.sha256((out / "labels.npy").read_bytes()).hexdigest(),
        "shards": [{key: record[key] for key in ("file", "pictures", "bytes", "sha256")} for record in records],
        "skipped": skipped,
        "plan": dataclasses.asdict(plan),
    }
    write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest


def _statistics(
    plan: EncodingPlan, records: list[dict[str, Any]], count: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of the latents, with the noise of their posterior."""
    elements = count * (1 + plan.flips) * plan.shape[1] * plan.shape[2]
    total, squares, noise = (np.sum([record["sums"] for record in records], axis=0) / elements).astype(np.float64)
    deviation = np.sqrt(np.maximum(squares - total**2, 0) + noise)
    if not (deviation > 0).all():
        dead = np.flatnonzero(deviation <= 0).tolist()
        raise DataError(
            f"channels {dead} of the latents are the same everywhere, so they cannot be normalised: are all pictures "
            "equal?"
        )
    return tuple(total.tolist()), tuple(deviation.tolist())
