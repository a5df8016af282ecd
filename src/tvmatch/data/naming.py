"""Names: of files in messages, and of classes that folders call by a number."""

from collections.abc import Sequence
from pathlib import Path

from tvmatch.data.source import DataError

NAMED = 10  # files that a message lists by name
CLASS_NAMES = "class_names.txt"  # beside the class folders


def named(skipped: Sequence[tuple[str, str]]) -> str:
    """`3 files: 'a.png' (empty file), ...`: the count and the first names; repr keeps odd names on one line."""
    shown = ", ".join(f"{name!r} ({reason})" for name, reason in skipped[:NAMED])
    more = f", and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return f"{len(skipped)} file{'s' if len(skipped) != 1 else ''}: {shown}{more}"


def read_class_names(path: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """The names of class folders from a file of lines `FOLDER name, other names`, such as
    `n01443537 goldfish, Carassius auratus` (ImageNet's LOC_synset_mapping.txt): the first name counts, and the whole
    line where two folders share it. Lines of other folders are left alone. Raises `DataError`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}).") from error
    full: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        folder, _, name = line.strip().partition(" ")
        if not folder:
            continue
        if not name.strip():
            raise DataError(f"{path}, line {number}: {line!r} must be a folder's name, a space, and the class's name.")
        if full.setdefault(folder, name.strip()) != name.strip():
            raise DataError(f"{path}, line {number}: folder {folder!r} is named twice.")
    lacking = [folder for folder in folders if folder not in full]
    if lacking:
        raise DataError(f"{path}: there is no line for class folder {lacking[0]!r} ({len(lacking)} lack one).")
    first = [full[folder].split(",")[0].strip() for folder in folders]
    names = [full[folder] if first.count(name) > 1 else name for folder, name in zip(folders, first, strict=True)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: two class folders are called {twice[0]!r}; names must differ.")
    return tuple(names)
