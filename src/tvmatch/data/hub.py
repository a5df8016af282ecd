"""Tables of pictures through the `datasets` library: from the Hugging Face hub, or local parquet and arrow files.

The library downloads, caches and maps the tables into memory; pictures stay encoded until they are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from tvmatch.data.source import DataError

KEYS = ("split", "config", "image", "label")


@dataclass(frozen=True, eq=False)
class TableRecords:
    """The pictures in a column of a `datasets.Dataset`, encoded."""

    origin: str
    table: Any  # datasets.Dataset whose one column holds {"bytes", "path"}
    labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    @cached_property
    def column(self) -> str:
        return self.table.column_names[0]

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return f"row {index}"

    def read(self, index: int) -> bytes:
        value = self.table[int(index)][self.column]
        if value and value.get("bytes"):
            return value["bytes"]
        if value and value.get("path"):
            raise OSError(f"the table holds only the path {value['path']!r}, which is not followed")
        return b""

    def sizes(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)


def hub_records(name: str) -> TableRecords:
    """A data set of the hub: `NAME`, or `NAME?split=train&config=...&image=COLUMN&label=COLUMN`.

    The split is `train`, and the columns are found by their types, unless they are given. Code that a data set brings
    along is never run. Raises `DataError`.
    """
    datasets = _datasets()
    name, _, query = name.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [key for key in options if key not in KEYS]
    if unknown or not name:
        raise DataError(f"hf:{name}?{query}: write hf:NAME?split=train&image=COLUMN; {KEYS} can be given.")
    split = options.get("split", "train")
    try:
        table = datasets.load_dataset(name, options.get("config"), split=split)
    except Exception as error:  # the library answers with many kinds
        raise DataError(
            f"hf:{name}, split {split!r}, cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    return _records(table, f"hf:{name}", options.get("image"), options.get("label"))


def table_records(files: Sequence[Path], origin: str) -> TableRecords:
    """Local parquet or arrow files with one schema. Raises `DataError`."""
    datasets = _datasets()
    kind = "parquet" if files[0].suffix == ".parquet" else "arrow"
    try:
        if kind == "arrow":
            table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
        else:
            table = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except Exception as error:
        raise DataError(f"{origin}: not readable as {kind}: {' '.join(str(error).split())[:300]}") from error
    return _records(table, origin, None, None)


def _records(table: Any, origin: str, image: str | None, label: str | None) -> TableRecords:
    """Find the columns, take the labels out, keep the pictures encoded."""
    datasets = _datasets()
    features = table.features
    image = image or _one(
        origin, "pictures", [name for name, feature in features.items() if _holds_pictures(datasets, feature)], features
    )
    labelled = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    for column in (image, label):
        if column is not None and column not in features:
            raise DataError(f"{origin}: there is no column {column!r}, only {', '.join(features)}.")
    if label is None and not labelled and getattr(features.get("label"), "dtype", "") in ("int64", "int32"):
        labelled = ["label"]
    if label is None and len(labelled) > 1:
        raise DataError(
            f"{origin}: several columns hold classes, {', '.join(labelled)}; choose one with ?label=COLUMN."
        )
    label = label or (labelled[0] if labelled else None)
    labels, names = np.full(len(table), -1, np.int64), ()
    if label is not None:
        labels, names = _classes(table, label, origin, datasets)
    pictures = table.select_columns([image])
    if isinstance(features[image], datasets.Image):
        pictures = pictures.cast_column(image, datasets.Image(decode=False))
    return TableRecords(origin, pictures, labels, names)


def _holds_pictures(datasets: Any, feature: Any) -> bool:
    """An Image, or the {bytes, path} in which parquet files of unknown origin keep one."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _one(origin: str, what: str, found: list[str], features: Any) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{origin}: several columns hold {what}, {', '.join(found)}; choose one with ?image=COLUMN.")
    raise DataError(f"{origin}: no column holds {what}; there are {', '.join(features)}.")


def _classes(table: Any, label: str, origin: str, datasets: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    values = table.with_format("numpy").select_columns([label])[:][label]
    values = np.asarray(values)
    if values.dtype.kind not in "iu" or not len(values) or values.min() < 0 or values.max() >= 1_000_000:
        raise DataError(
            f"{origin}: column {label!r} must hold class numbers from 0, got {values.dtype}"
            + (f" from {values.min()} to {values.max()}" if values.dtype.kind in "iu" and len(values) else "")
            + ". Choose another with ?label=COLUMN."
        )
    feature = table.features[label]
    count = int(values.max()) + 1
    names = feature.names if isinstance(feature, datasets.ClassLabel) else [str(number) for number in range(count)]
    if len(names) < count or len(set(names)) < len(names):
        raise DataError(f"{origin}: column {label!r} has {len(set(names))} class names for {count} classes.")
    return values.astype(np.int64), tuple(names)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("parquet, arrow and hub data sets need an extra: pip install 'tvmatch[data]'") from error
    return datasets
