"""Tables of pictures through the `datasets` library: from the Hugging Face hub, or local parquet and arrow files.

The library downloads, caches and maps the tables into memory; pictures stay encoded until they are asked for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from tvmatch.data.source import DataError

KEYS = ("split", "config", "image", "label")
CLASS_COLUMNS = ("label", "labels", "class", "cls")  # names that promise classes, whatever the column's type
CLASS_WORDS = (*CLASS_COLUMNS, "classes", "target", "targets", "category", "categories")  # of whole numbers
NUMBERING = ("id", "ids", "idx", "index", "number")  # words that may follow them, as in `category_id`
ROWS = 10_000  # of a table, looked at together
INTEGERS = re.compile(r"u?int(8|16|32|64)")  # types, as the library spells them


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
        """int64 [N]: bytes of each encoded picture, -1 where there are none. Only the offsets are read (of a column of
        views, which has none, the pictures)."""
        import pyarrow
        import pyarrow.compute as pc

        sizes = [np.zeros(0, np.int64)]
        for part in self.table.with_format("arrow").iter(ROWS):
            encoded = pc.struct_field(part.column(self.column), "bytes")
            if str(encoded.type) == "binary_view":
                encoded = encoded.cast(pyarrow.large_binary())
            nested = pyarrow.types.is_list(encoded.type) or pyarrow.types.is_large_list(encoded.type)
            lengths = pc.list_value_length(encoded) if nested else pc.binary_length(encoded)
            sizes.append(pc.fill_null(lengths, -1).to_numpy().astype(np.int64))
        return np.concatenate(sizes)


def hub_records(name: str) -> TableRecords:
    """A data set of the hub: `NAME`, or `NAME?split=train&config=...&image=COLUMN&label=COLUMN`.

    The split is `train`, and the columns are found by their types, unless they are given; `label=` is none, for a data
    set without classes. Code that a data set brings along is never run. Raises `DataError`.
    """
    datasets = _datasets()
    name, _, query = name.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [key for key in options if key not in KEYS]
    if unknown or not name:
        raise DataError(f"hf:{name}?{query}: write hf:NAME?split=train&image=COLUMN; {KEYS} can be given.")
    split = options.get("split", "train")
    try:
        if Path(name).is_dir():
            found = datasets.load_dataset_builder(name, options.get("config")).config.data_files or {}
            files = [Path(file) for key in found if str(key) in re.findall(r"\w+", split) for file in found[key]]
            parquet = [file for file in files if file.suffix == ".parquet"]
            _check_same_classes(parquet, f"hf:{name}", options.get("label"))
        table = datasets.load_dataset(name, options.get("config"), split=split)
    except DataError:
        raise
    except Exception as error:  # the library answers with many kinds
        raise DataError(
            f"hf:{name}, split {split!r}, cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    return _records(table, f"hf:{name}", options.get("image"), options.get("label"))


def table_records(files: Sequence[Path], origin: str, query: str = "") -> TableRecords:
    """Local parquet or arrow files with one schema; `query` is `image=COLUMN&label=COLUMN`, or one of them, as for
    `hub_records`. Raises `DataError`."""
    datasets = _datasets()
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [key for key in options if key not in ("image", "label")]
    if unknown:
        raise DataError(
            f"{origin}?{query}: local tables take ?image=COLUMN&label=COLUMN only; for a split, write "
            "hf:FOLDER?split=train."
        )
    kind = "parquet" if files[0].suffix == ".parquet" else "arrow"
    try:
        if kind == "arrow":
            table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
        else:
            _check_same_classes(files, origin, options.get("label"))
            table = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{origin}: not readable as {kind}: {' '.join(str(error).split())[:300]}") from error
    return _records(table, origin, options.get("image"), options.get("label"))


def _check_same_classes(files: Sequence[Path], origin: str, label: str | None) -> None:
    """Raise `DataError` for parquet files whose labels differ in meaning: the library reads the numbers of all with the
    class names of the first. (It refuses such arrow files itself.)"""
    if label == "" or len(files) < 2:
        return
    datasets = _datasets()
    from pyarrow.parquet import read_schema

    features = [datasets.Features.from_arrow_schema(read_schema(file)) for file in files]
    columns = [label]
    if label is None:
        classes = (name for each in features for name in each if isinstance(each[name], datasets.ClassLabel))
        columns = list(dict.fromkeys(classes)) or ["label"]
    for column in columns:
        first = _meaning(features[0].get(column))
        for file, each in zip(files[1:], features[1:], strict=True):
            other = _meaning(each.get(column))
            if other == first:
                continue
            differ = next((n for n, pair in enumerate(zip(first, other, strict=False)) if n and len(set(pair)) > 1), 1)
            told = [", ".join((meaning[0], *meaning[differ : differ + 3])) for meaning in (first, other)]
            raise DataError(
                f"{origin}: the labels of its files differ in meaning: column {column!r} holds {told[0]} in "
                f"{files[0].name!r}, and {told[1]} in {file.name!r}. Give all files the same class names in the same "
                f"order, or train without classes with {origin}?label="
            )


def _meaning(feature: Any) -> tuple[str, ...]:
    """What the values of a label column stand for: its number of classes and the name of each, or else its type."""
    if hasattr(feature, "names"):
        return f"{len(feature.names)} classes", *(f"{number} {name!r}" for number, name in enumerate(feature.names))
    if feature is None:
        return ("nothing",)
    return ("whole numbers",) if INTEGERS.fullmatch(_type(feature)) else (_type(feature),)


def _records(table: Any, origin: str, image: str | None, label: str | None) -> TableRecords:
    """Find the columns unless they are given (`label` "": none), take the labels out, keep the pictures encoded."""
    datasets = _datasets()
    features = table.features
    pictured = [name for name, feature in features.items() if _holds_pictures(datasets, feature)]
    for column in (image, label or None):
        if column is not None and column not in features:
            raise DataError(f"{origin}: there is no column {column!r}, only {', '.join(features)}.")
    if image is None:
        image = _one(origin, "pictures", pictured, features)
    elif image not in pictured:
        which = f"those that do are {', '.join(pictured)}" if pictured else "no column does"
        raise DataError(f"{origin}: column {image!r} holds no pictures but {_type(features[image])}; {which}.")
    labelled = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if label is None and not labelled:
        labelled = _class_column(origin, features)
    if label is None and len(labelled) > 1:
        raise DataError(
            f"{origin}: several columns hold classes, {', '.join(labelled)}; choose one with {origin}?label=COLUMN."
        )
    if label is None and labelled:
        label = labelled[0]
    labels, names = np.full(len(table), -1, np.int64), ()
    if label:
        labels, names = _classes(table, label, origin, datasets)
    pictures = table.select_columns([image])
    if isinstance(features[image], datasets.Image):
        pictures = pictures.cast_column(image, datasets.Image(decode=False))
    return TableRecords(origin, pictures, labels, names)


def _holds_pictures(datasets: Any, feature: Any) -> bool:
    """An Image, or the {bytes, path} in which parquet files of unknown origin keep one."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def _class_column(origin: str, features: Any) -> list[str]:
    """`label` if it holds whole numbers, nothing if no column sounds like classes. A column that sounds like them
    but is not taken is an error: training without classes would go unnoticed."""
    if INTEGERS.fullmatch(_type(features.get("label"))):
        return ["label"]
    for column in features:
        kind = _type(features[column])
        if not _sounds_like_classes(column, kind):
            continue
        remedy = "convert it to class numbers from 0"
        if INTEGERS.fullmatch(kind):
            remedy = f"give {origin}?label={column}, or rename it to 'label'"
        raise DataError(
            f"{origin}: column {column!r} ({kind}) sounds like classes, but only a ClassLabel or whole numbers in "
            f"'label' are taken for them; {remedy}. {origin}?label=COLUMN takes another column, and {origin}?label= "
            "none, to train without classes."
        )
    return []


def _sounds_like_classes(column: str, kind: str) -> bool:
    """Whether a column of this name and type would be missed if it were not taken: `Label` of any type, and whole
    numbers called `target`, `fine_label` or `categoryId`."""
    if column.lower() in CLASS_COLUMNS:
        return True
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)]
    while len(words) > 1 and words[-1] in NUMBERING:
        words.pop()
    return bool(words) and words[-1] in CLASS_WORDS and INTEGERS.fullmatch(kind) is not None


def _type(feature: Any) -> str:
    """The type of a column, `int64` or `string` or what the library calls it."""
    dtype = getattr(feature, "dtype", None)
    return dtype if isinstance(dtype, str) else type(feature).__name__


def _one(origin: str, what: str, found: list[str], features: Any) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{origin}: several columns hold {what}, {', '.join(found)}; choose one with {origin}?image=COLUMN."
        )
    raise DataError(f"{origin}: no column holds {what}; there are {', '.join(features)}.")


def _classes(table: Any, label: str, origin: str, datasets: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    values = table.with_format("numpy").select_columns([label])[:][label]
    values = np.asarray(values)
    numbers = values.dtype.kind in "iu" and values.ndim == 1 and len(values) > 0
    if not numbers or values.min() < 0 or values.max() >= 1_000_000:
        raise DataError(
            f"{origin}: column {label!r} must hold class numbers from 0, one a row, got {values.dtype}"
            + (f" {list(values.shape)}" if values.ndim != 1 else "")
            + (f" from {values.min()} to {values.max()}" if numbers else "")
            + f". Convert it, or choose another with {origin}?label=COLUMN."
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
