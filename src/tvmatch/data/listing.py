"""What lies in a folder of pictures: files, classes, and what is left out, found without opening a file."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmatch.data.decoding import SUFFIXES
from tvmatch.data.naming import CLASS_NAMES, read_class_names
from tvmatch.data.records import FileRecords
from tvmatch.data.source import DataError
from tvmatch.data.splits import SPLITS


@dataclass(frozen=True, eq=False)
class Listing:
    """Picture files in a fixed order, the label of each (int64 [N], all -1 without classes), the names of the classes
    and of their folders, and what was left out."""

    files: list[Path]
    labels: np.ndarray
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def list_folder(root: Path) -> Listing:
    """List `root`: one sub-folder a class, or pictures only. Hidden entries are ignored. A file `class_names.txt` in
    `root` gives the classes other names than their folders' (`read_class_names`).

    Raises `DataError` for pictures beside sub-folders, for folders in class folders, and for class folders that all
    have names of splits: which of them are the classes is not for us to guess (a data set's `train` and `test` would
    become two classes).
    """
    top, folders, skipped = _entries(root, root)
    if folders and top:
        raise DataError(
            f"{root}: holds both pictures ({top[0].name!r}, {len(top)} in all) and sub-folders ({folders[0].name!r}, "
            f"{len(folders)} in all). Use one sub-folder a class, or pictures only."
        )
    files, labels = list(top), [-1] * len(top)
    for label, folder in enumerate(folders):
        if folder.is_symlink():
            skipped.append((folder.name, "a link to a folder, which is not followed; copy the pictures"))
            continue
        inside, deeper, more_skipped = _entries(folder, root)
        if deeper:
            raise DataError(
                f"{root}: class folder {folder.name!r} holds a sub-folder {deeper[0].name!r}; pictures lie directly "
                f"in their class folder. If its sub-folders are the classes, give {str(folder)!r} itself."
            )
        files += inside
        labels += [label] * len(inside)
        skipped += more_skipped
    if folders and all(folder.name.lower() in SPLITS for folder in folders) and not (root / CLASS_NAMES).is_file():
        split = next((folder for folder in folders if SPLITS[folder.name.lower()] == "train"), folders[0])
        raise DataError(
            f"{root}: its sub-folders are splits by their names, not classes: {', '.join(f.name for f in folders)}. "
            f"Give one of them, such as {str(split)!r}. If they are classes, name each in {CLASS_NAMES}, a line "
            f"'{split.name} NAME'."
        )
    folder_names = names = tuple(folder.name for folder in folders)
    if folders and (root / CLASS_NAMES).is_file():
        names = read_class_names(root / CLASS_NAMES, folder_names)
    return Listing(files, np.array(labels, np.int64), names, folder_names, tuple(skipped))


def folder_records(root: Path) -> FileRecords:
    """The same as records, to be decoded one by one. A class whose folder holds no picture file is an error."""
    listing = list_folder(root)
    for label, name in enumerate(listing.folders):
        if not (listing.labels == label).any():
            raise DataError(f"{root}: class folder {name!r} holds no picture; fill it or remove it.")
    files = [str(file.relative_to(root)) for file in listing.files]
    return FileRecords(root, files, listing.labels, listing.class_names, listing.skipped)


def _entries(folder: Path, root: Path) -> tuple[list[Path], list[Path], list[tuple[str, str]]]:
    """The picture files and the sub-folders of one folder, each sorted by name, and (path, reason) of the rest."""
    inner = root.resolve()
    files, folders, skipped = [], [], []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}).") from error
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or (folder == root and entry.name == CLASS_NAMES):
            continue
        if _is_folder(path):
            folders.append(path)
            continue
        reason = None
        if path.suffix.lower() not in SUFFIXES:
            reason = "no picture, by its suffix"
        elif entry.is_symlink():
            reason = _link_trouble(path, inner)
        if reason is None:
            files.append(path)
        else:
            skipped.append((str(path.relative_to(root)), reason))
    return files, folders, skipped


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # opening it as a picture will say why
        return False


def _link_trouble(path: Path, inner: Path) -> str | None:
    """Why a linked file is left out; None if it stays inside the folder."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link to nothing"
    return None if target.is_relative_to(inner) else "a link that leaves the folder"
