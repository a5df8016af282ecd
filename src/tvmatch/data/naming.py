"""Names: of files in messages, and of classes, by which users ask and which folders call by a number."""

import difflib
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
    line where two folders share it. A folder's name may hold blanks: of those that fit a line the longest counts. Lines
    of other folders are left alone. Raises `DataError`."""
    full: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        folder, name = _folder_and_name(line.strip(), frozenset(folders))
        if not folder:
            continue
        if not name:
            raise DataError(f"{path}, line {number}: {line!r} must be a folder's name, a space, and the class's name.")
        if full.setdefault(folder, name) != name:
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


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without the mark that Windows writes before the first. Raises `DataError`."""
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        remedy = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"{path}: cannot be read as text ({error}){remedy}.") from error


def _folder_and_name(line: str, folders: frozenset[str]) -> tuple[str, str]:
    """The longest beginning of a line that is one of `folders` and leaves a name, else the first word; and the name."""
    words = line.split(" ")
    for count in range(len(words) - 1, 0, -1):
        folder, name = (" ".join(part).strip() for part in (words[:count], words[count:]))
        if folder in folders and name:
            return folder, name
    folder, _, name = line.partition(" ")
    return folder, name.strip()


def class_index(name: str, class_names: Sequence[str], num_classes: int) -> int:
    """The index of a class given by name, or by number unless there are names that are numbers themselves;
    `ValueError` says which classes there are."""
    if name in class_names:
        return class_names.index(name)
    numbered = any(other.isdecimal() for other in class_names)
    if name.isdecimal() and int(name) < num_classes and not numbered:
        return int(name)
    if not class_names:
        raise ValueError(f"no class is called {name!r}: this run was trained without classes.")
    near = difflib.get_close_matches(name, class_names, n=1)
    listed = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
    hint = f"did you mean {near[0]!r}?" if near else f"there are {listed}."
    raise ValueError(f"no class is called {name!r}; {hint}")
