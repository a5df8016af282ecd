"""Splits of a data set, by the words in names of files and folders."""

import re
from pathlib import Path

from tvmatch.data.source import DataError

SPLITS = {  # as the `datasets` library reads them
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def check_one_split(folder: Path, files: list[Path]) -> None:
    """Raise `DataError` for files of several splits: trained on together, the test set would be among them."""
    found: dict[str, Path] = {}
    for file in files:
        words = [SPLITS[word] for word in re.split(r"[^a-z]+", file.stem.lower()) if word in SPLITS]
        if words:
            found.setdefault(words[0], file)
    if len(found) > 1:
        names = ", ".join(f"{file.name!r} ({split})" for split, file in found.items())
        split = "train" if "train" in found else next(iter(found))
        what, choice = "tables", f"hf:{_local(folder)}?split={split}"
        if files[0].suffix == ".tar":
            what, choice = "shards", f"a pattern, such as {folder / split}-{{000..099}}.tar"
        raise DataError(
            f"{folder}: its {what} are of several splits: {names}. Choose one with {choice}, or give one file."
        )


def _local(folder: Path) -> str:
    """A folder's path as `hf:` takes it: never mistaken for a name of the hub."""
    return str(folder) if folder.is_absolute() else f"./{folder}"
