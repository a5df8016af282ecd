"""The one place that turns the name of a data set, or a path, into a source."""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tvmatch.data.decoding import SUFFIXES, Crop
from tvmatch.data.source import DataError, PictureReader, Source, check_image_size
from tvmatch.data.splits import check_one_split

if TYPE_CHECKING:
    from tvmatch.data.hub import TableRecords

CHOICES = (
    "Give `digits`, an .npz file, a folder of pictures, a folder of latents (`tvmatch encode`), .tar shards, .parquet "
    "or .arrow files, or `hf:NAME` for a data set of the Hugging Face hub."
)
IN_MEMORY = 2**30  # bytes of decoded pictures up to which a folder is decoded once and kept


def open_source(spec: str, image_size: int | None = None, strict: bool = False, crop: Crop = "centre") -> Source:
    """Open a data set.

    spec        `digits` (embedded, the training split); an `.npz` file; a folder of pictures (`./digits` for a folder
                of that name); a folder of latents; WebDataset shards of pictures (`FILE.tar`, a folder of them, or
                `train-{000..099}.tar`); a `.parquet` or `.arrow` file, or a folder of them, with
                `?image=COLUMN&label=COLUMN` where their types do not tell; `hf:NAME` from the hub
    image_size  height and width in pixels that every picture is brought to; None keeps the size the data has
    strict      a picture that cannot be used is an error instead of skipped with a warning
    crop        of pictures that are not square: the centre, or a random square each time (decoded as they are needed)

    Raises `DataError` for an unknown name, a missing path, a folder of several kinds of data or of several splits, and
    everything that is wrong with the data itself.
    """
    # imported here: scikit-learn alone takes a second, and the loaders build on `source`
    check_image_size(image_size)
    if not spec:
        raise DataError(f"the name of the data is empty. {CHOICES}")
    path = Path(spec).expanduser()
    if crop == "random" and (spec == "digits" or path.suffix.lower() == ".npz" or _is_latents(path)):
        raise DataError(f"data {spec!r} has no pictures to crop at random; leave --crop out.")
    if spec == "digits":
        from tvmatch.data.digits import digits_source

        return digits_source("train", image_size)
    if _is_latents(path):
        from tvmatch.data.latents import LatentsSource

        return LatentsSource(path, image_size)
    if path.is_file() and path.suffix.lower() == ".npz":
        from tvmatch.data.arrays import npz_source

        return npz_source(path, image_size)
    if is_picture_folder(path) and crop == "centre":
        from tvmatch.data.folder import folder_source
        from tvmatch.data.listing import list_folder

        count = len(list_folder(path).files)
        if image_size is None or count * image_size**2 * 3 <= IN_MEMORY:
            return folder_source(path, image_size, strict)
    return _streamed(spec, path, image_size, strict, crop)


def open_pictures(spec: str, image_size: int | None = None, strict: bool = False) -> PictureReader:
    """Open a data set of pictures to be read once, in order: as `open_source`, but nothing is decoded beforehand.

    Raises `DataError`, for latents too: they are no pictures.
    """
    check_image_size(image_size)
    if not spec:
        raise DataError(f"the name of the data is empty. {CHOICES}")
    path = Path(spec).expanduser()
    if _is_latents(path):
        raise DataError(f"data {spec!r} are latents already; give the pictures.")
    if spec == "digits" or (path.is_file() and path.suffix.lower() == ".npz"):
        return open_source(spec, image_size, strict)
    return _streamed(spec, path, image_size, strict, "centre")


def _streamed(spec: str, path: Path, image_size: int | None, strict: bool, crop: Crop) -> Source:
    """A source that decodes what it is asked for."""
    from tvmatch.data.streamed import StreamedSource

    path, query = _split_query(spec, path)
    _check_one_kind(path)
    if spec.startswith("hf:"):
        from tvmatch.data.hub import hub_records

        records = hub_records(spec.removeprefix("hf:"))
    elif _tar_pattern(spec) or (path.is_file() and path.suffix == ".tar") or (path.is_dir() and _tar_files(path)):
        from tvmatch.data.shards import shard_records

        check_one_split(path, _tar_files(path))  # of a folder; a pattern or a file names its own
        records = shard_records(spec if _tar_pattern(spec) else path)
    elif _is_table(path):
        records = _local_table(path, query)
    elif path.is_dir():
        from tvmatch.data.listing import folder_records

        records = folder_records(path)
    elif not path.exists():
        raise DataError(_unknown(spec, path))
    else:
        raise DataError(f"data {spec!r} is a file that is not an .npz. {CHOICES}")
    if image_size is None:
        raise DataError(
            f"image_size is required for {spec!r}, whose pictures are decoded one by one: --image-size 256."
        )
    return StreamedSource(records, image_size, crop, strict)


def _split_query(spec: str, path: Path) -> tuple[Path, str]:
    """The path and the columns of `FILE?image=COLUMN` for tables; a path with a ? in its name stays whole."""
    name, _, query = spec.partition("?")
    if query and not path.exists() and _is_table(Path(name).expanduser()):
        return Path(name).expanduser(), query
    return path, ""


def _local_table(path: Path, query: str) -> "TableRecords":
    """The tables of a file or folder, with the columns that `query` names."""
    from tvmatch.data.hub import table_records

    files = [path]
    if path.is_dir():
        files = _table_files(path)
        check_one_split(path, files)
    return table_records(files, str(path), query)


def _is_table(path: Path) -> bool:
    if path.is_dir():
        return bool(_table_files(path))
    return path.suffix in (".parquet", ".arrow") and path.is_file()


def is_picture_folder(path: Path) -> bool:
    """Whether a path is a folder of picture files, opened as they lie, rather than one of tables, shards or latents."""
    return path.is_dir() and not (_is_latents(path) or _table_files(path) or _tar_files(path))


def _check_one_kind(path: Path) -> None:
    """Raise `DataError` for a folder with shards or tables at its top beside pictures, class folders or one another, or
    with tables of both kinds: the first would silently take the place of the rest."""
    if not path.is_dir():
        return
    tars, tables = _tar_files(path), _table_files(path)
    beside = None
    if tars and tables:
        beside = tables[0]
    elif tars or (tables and tables[0].parent == path):  # a hub repository's `data` may lie beside its card's pictures
        beside = _picture_within(path)
    if beside is None and tables:
        beside = next(iter(_tables(tables[0].parent, "arrow" if tables[0].suffix == ".parquet" else "parquet")), None)
    if beside is not None:
        first = (tars or tables)[0]
        raise DataError(
            f"{path}: holds both {first.name!r} and {str(beside.relative_to(path))!r}, and which of them are the data "
            f"is not clear. Move one kind away, or give {str(first)!r} itself."
        )


def _picture_within(folder: Path) -> Path | None:
    """A picture file of the folder or of one of its sub-folders; None if there is none."""
    for pattern in ("*", "*/*"):
        for entry in folder.glob(pattern):
            parts = entry.relative_to(folder).parts
            if entry.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in parts):
                return entry
    return None


def _is_latents(path: Path) -> bool:
    return path.is_dir() and ((path / "manifest.json").is_file() or (path / "plan.json").is_file())


def _tar_pattern(spec: str) -> bool:
    return "{" in spec and spec.endswith(".tar")


def _tar_files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.glob("*.tar") if not entry.name.startswith("."))


def _table_files(folder: Path) -> list[Path]:
    """The parquet or arrow files of a folder, the `data` folder of a hub repository included."""
    for place in (folder, folder / "data"):
        for suffix in ("parquet", "arrow"):
            if found := _tables(place, suffix):
                return found
    return []


def _tables(place: Path, suffix: str) -> list[Path]:
    """The tables of one kind in a folder, without what the `datasets` library leaves beside its arrow files: results of
    `map` and indices of `filter`, which repeat the pictures."""
    if suffix == "arrow" and (saved := _saved_tables(place)):
        return saved
    passing = (".", "cache-", "tmp") if suffix == "arrow" else "."
    return sorted(entry for entry in place.glob(f"*.{suffix}") if not entry.name.startswith(passing))


def _saved_tables(place: Path) -> list[Path]:
    """The arrow files that `save_to_disk` of the `datasets` library wrote, as its `state.json` lists them."""
    try:
        state = json.loads((place / "state.json").read_text("utf-8"))
        return [place / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another program
        return []


def _unknown(spec: str, path: Path) -> str:
    """Say what was probably meant by a spec that is neither a known name nor an existing path."""
    if difflib.get_close_matches(spec.lower(), ["digits"]):
        return f"unknown data {spec!r}: did you mean `digits`?"
    if not path.parent.is_dir():
        return f"no such data: {spec!r} (there is no folder {str(path.parent.absolute())!r} either). {CHOICES}"
    neighbours = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, neighbours, n=1)
    meant = f" Did you mean {str(path.parent / close[0])!r}?" if close else ""
    return f"no such file or folder: {str(path.absolute())!r}.{meant} {CHOICES}"
