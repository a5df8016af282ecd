"""WebDataset shards of pictures: tar files in which the members of one sample share their name up to the first dot.

The shards are local, so each is indexed once when it is opened, and any picture can be read at any time. The streaming
reader of the webdataset library shuffles in a buffer, whose state a resumed run could not restore to the exact sample.
Nothing is ever unpacked onto the disk: names of members are names, never paths.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tvmatch.data.decoding import SUFFIXES
from tvmatch.data.naming import read_lines
from tvmatch.data.progress import show_progress
from tvmatch.data.source import DataError

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
LABELS, MEMBERS_OF_LABEL = 1_000_000, 64  # a class number below, in a member of at most so many bytes
MOST_SHARDS = 100_000
MOST_BYTES = 2**28  # of one encoded picture


@dataclass(frozen=True, eq=False)
class ShardRecords:
    """Pictures inside tar files, by shard, offset and length."""

    origin: str
    shards: list[Path]
    names: list[str]
    shard: np.ndarray  # int32 [N]
    offset: np.ndarray  # int64 [N]
    length: np.ndarray  # int64 [N]
    labels: np.ndarray
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    _open: dict[int, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> bytes:
        number = int(self.shard[index])
        if number not in self._open:
            self._open[number] = os.open(self.shards[number], os.O_RDONLY)
        return os.pread(self._open[number], int(self.length[index]), int(self.offset[index]))

    def sizes(self) -> np.ndarray:
        return self.length

    def __getstate__(self) -> dict:
        """For a worker process, which opens the files itself."""
        return {**self.__dict__, "_open": {}}


def shard_records(where: str | Path) -> ShardRecords:
    """Index the shards in a folder, one `.tar` file, or `name-{000..099}.tar`.

    A sample is a picture beside a label: `KEY.cls` with a class number from 0 as text, in every sample or in none. The
    two must follow each other in the shard. Names of the classes may lie in `class_names.txt` beside the shards, one a
    line. What cannot be used is left out and named; a shard that is cut short gives what lies before the cut. Raises
    `DataError` where nothing can be used, where a label lies elsewhere than its picture, and for a label whose name has
    a dot before `.cls`.
    """
    shards = _shards(where)
    found: list[tuple[str, int, int, int, int]] = []  # name, shard, offset, length, label
    skipped: list[tuple[str, str]] = []
    alone: dict[str, str] = {}  # key and name of each label that has no picture beside it
    for number in show_progress(range(len(shards)), "Indexing shards"):
        for sample in _samples(shards[number], skipped, alone):
            name, offset, length, label = sample
            found.append((name, number, offset, length, label))
    origin = str(where)
    if not found:
        from tvmatch.data.naming import named

        raise DataError(
            f"{origin}: the shards hold no picture" + (f"; left out were {named(skipped)}" if skipped else "")
        )
    unlabelled = [entry for entry in found if entry[4] < 0]
    for name, *_ in unlabelled if alone else ():
        label_name = alone.get(_key(name.partition("/")[2]))
        if label_name is not None:  # `tar cf a.tar *.png *.cls` makes such shards
            raise DataError(
                f"{origin}: label {label_name!r} does not lie beside its picture {name!r}. The members of a sample "
                "must follow each other: make the shards with tar --sort=name and a folder, not *.png *.cls."
            )
    if 0 < len(unlabelled) < len(found):
        if 2 * len(unlabelled) > len(found):
            raise DataError(
                f"{origin}: {len(unlabelled)} of {len(found)} samples have no .cls label, {unlabelled[0][0]!r} for "
                "one. Give every sample one, or none."
            )
        skipped += [(entry[0], "no .cls label, which others have") for entry in unlabelled]
        found = [entry for entry in found if entry[4] >= 0]
    labels = np.array([entry[4] for entry in found], np.int64)
    names = _class_names(shards[0].parent / "class_names.txt", int(labels.max()) + 1)
    column = list(zip(*found, strict=True))
    return ShardRecords(
        origin,
        shards,
        list(column[0]),
        np.array(column[1], np.int32),
        np.array(column[2], np.int64),
        np.array(column[3], np.int64),
        labels,
        names,
        tuple(skipped),
    )


def _shards(where: str | Path) -> list[Path]:
    """The tar files, in order."""
    text = str(where)
    match = BRACES.search(text)
    if match:
        low, high = match[1], match[2]
        count = int(high) - int(low) + 1
        if not 1 <= count <= MOST_SHARDS:
            raise DataError(
                f"{text!r}: {{{low}..{high}}} names {max(count, 0)} shards; 1 to {MOST_SHARDS} can be read."
            )
        numbers = range(int(low), int(high) + 1)
        names = [text[: match.start()] + f"{n:0{len(low)}}" + text[match.end() :] for n in numbers]
        shards = [Path(name).expanduser() for name in names]
        missing = [shard for shard in shards if not shard.is_file()]
        if missing:
            raise DataError(f"{text!r}: there is no {missing[0]} ({len(missing)} of {count} are missing).")
        return shards
    path = Path(where)
    return sorted(p for p in path.glob("*.tar") if not p.name.startswith(".")) if path.is_dir() else [path]


def _samples(shard: Path, skipped: list[tuple[str, str]], alone: dict[str, str]) -> Iterator[tuple[str, int, int, int]]:
    """(name, offset, length, label or -1) of each usable picture of a shard; labels without pictures go to `alone`."""
    key, pictures, label, dotted = None, [], -1, None
    for extension, member, content in _members(shard, skipped):
        member_key = _key(member.name)
        if member_key != key:
            _check_dots(shard, dotted, label)
            yield from _sample(shard, key, pictures, label, skipped, alone)
            key, pictures, label, dotted = member_key, [], -1, None
        if "." + extension.rsplit(".", 1)[-1] in SUFFIXES:
            pictures.append(member)
        elif extension == "cls":
            label = _label(content)
            if label is None:
                skipped.append((f"{shard.name}/{member.name}", f"no class number from 0: {content[:20]!r}"))
                label = -2
        elif extension.endswith(".cls"):
            dotted = member.name
    _check_dots(shard, dotted, label)
    yield from _sample(shard, key, pictures, label, skipped, alone)


def _check_dots(shard: Path, dotted: str | None, label: int) -> None:
    """Raise `DataError` for a sample whose only label has a dot in its name: the sample would count as unlabelled."""
    if dotted is not None and label == -1:
        raise DataError(
            f"{shard}: {dotted!r} is no label to WebDataset, for which the extension begins at the first dot: "
            f"{dotted.rpartition('/')[2].partition('.')[2]!r}, not 'cls'. Make the shards with names without dots, or "
            "call a label that is not the class otherwise than .cls."
        )


def _sample(
    shard: Path,
    key: str | None,
    pictures: list[tarfile.TarInfo],
    label: int,
    skipped: list[tuple[str, str]],
    alone: dict[str, str],
) -> Iterator[tuple[str, int, int, int]]:
    if key is not None and not pictures and label != -1:
        alone[key] = f"{shard.name}/{key}.cls"
    if key is None or not pictures or label == -2:
        return
    if len(pictures) > 1:
        skipped.append((f"{shard.name}/{key}", f"{len(pictures)} pictures in one sample"))
        return
    yield f"{shard.name}/{pictures[0].name}", pictures[0].offset_data, pictures[0].size, label


def _key(name: str) -> str:
    """What the members of one sample share: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _members(shard: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    """(extension, member, content of a label) of each plain file of a tar file, until it ends or is damaged."""
    try:
        end = os.path.getsize(shard)
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                name = f"{shard.name}/{member.name}"
                base = member.name.rpartition("/")[2]
                _, dot, extension = base.lower().partition(".")
                if member.isdir() or base.startswith("."):
                    continue
                if not member.isreg():
                    skipped.append((name, "no plain file"))  # a link points to who knows where
                elif member.issparse() or not 0 <= member.size <= end - member.offset_data:
                    skipped.append((name, "cut short"))
                elif member.size > MOST_BYTES:
                    skipped.append((name, f"{member.size} bytes"))
                elif dot:
                    label = b""
                    if extension == "cls":
                        label = archive.extractfile(member).read(MEMBERS_OF_LABEL)
                    yield extension, member, label
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        skipped.append((shard.name, f"no tar file, or damaged ({' '.join(str(error).split())[:100]})"))


def _label(content: bytes) -> int | None:
    text = content.decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() and int(text) < LABELS else None


def _class_names(path: Path, least: int) -> tuple[str, ...]:
    """A name a class: the lines of a file, or numbers."""
    if least == 0:
        return ()
    if not path.is_file():
        return tuple(str(label) for label in range(least))
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(f"{path}, line {names.index('') + 1} is empty: each line names one class, from 0; remove it.")
    if len(names) < least or len(set(names)) < len(names):
        raise DataError(f"{path}: must hold {least} different names or more, one a line; it holds {len(set(names))}.")
    return tuple(names)
