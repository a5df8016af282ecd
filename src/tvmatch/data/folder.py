"""A folder of pictures: one sub-folder a class, or all pictures directly in it when there are no classes.

Everything is decoded once, when the source is opened. A file that cannot be used is skipped, and one warning counts
and names them; with `strict` it is an error.
"""

import logging
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from tvmatch.data.decoding import SUFFIXES, UnusablePicture, decode, open_picture
from tvmatch.data.in_memory import InMemorySource
from tvmatch.data.listing import list_folder
from tvmatch.data.memory import require_memory
from tvmatch.data.naming import named
from tvmatch.data.progress import show_progress
from tvmatch.data.source import DataError, check_image_size

CHUNK = 8  # pictures a task: a future each would cost more than decoding a small picture
THREADS = 16

logger = logging.getLogger("tvmatch")
Skipped = list[tuple[str, str]]
Result = TypeVar("Result")


def folder_source(path: str | Path, image_size: int | None = None, strict: bool = False) -> InMemorySource:
    """Decode a folder of pictures to uint8 RGB [N, image_size, image_size, 3].

    path        one sub-folder a class (their sorted names are the class names), or pictures without sub-folders
    image_size  pixels; the short side is resized to it (Lanczos) and the centre cropped. None is allowed only when
                all pictures share one square size
    strict      raise if any file has to be skipped

    Hidden files are ignored; links that leave the folder are not followed. Raises `DataError` for an empty folder, a
    class without a usable picture, pictures beside sub-folders, and what does not fit into memory.
    """
    check_image_size(image_size)
    root = Path(path)
    listing = list_folder(root)
    skipped = list(listing.skipped)
    files, labels = listing.files, listing.labels
    if not files:
        raise DataError(_nothing(root, skipped))
    with warnings.catch_warnings():
        # Pillow's warnings (large pictures, odd metadata) would come once a file; what matters is in `skipped`
        warnings.simplefilter("ignore")
        if image_size is None:
            image_size = _shared_size(root, files)
        needed = len(files) * image_size**2 * 3
        require_memory(
            needed,
            f"{root}: {len(files)} pictures of {image_size} x {image_size} pixels",
            "Choose a smaller image_size or fewer pictures.",
        )
        images, usable, unusable, notes = _decode_all(root, files, image_size)
    labels = labels[usable]
    skipped = sorted(skipped + unusable)
    if strict and skipped:
        raise DataError(f"{root}: {named(skipped)}. Mend or remove them, or give --no-strict to skip them.")
    if not len(images):
        raise DataError(_nothing(root, skipped))
    for label, folder in enumerate(listing.folders):
        if not (labels == label).any():
            inside = [entry for entry in skipped if entry[0] == folder or entry[0].startswith(folder + os.sep)]
            why = f" ({named(inside)})" if inside else ""
            raise DataError(f"{root}: class folder {folder!r} holds no usable picture{why}; fill it or remove it.")
    if skipped:
        logger.warning("%s: skipped %s (--strict makes this an error).", root, named(skipped))
    for note in notes:
        logger.warning("%s: %s", root, note)
    return InMemorySource(images, labels, listing.class_names, tuple(skipped))


def _shared_size(root: Path, files: list[Path]) -> int:
    """The one square size of all pictures that have a readable header; `DataError` if there is none."""
    sizes: Counter[tuple[int, int]] = Counter()
    for _, results in _in_threads(files, _picture_size, "Reading sizes"):
        sizes.update(size for size in results if size is not None)
    if not sizes:
        return 1  # no header is readable: decoding will say of each file why
    (width, height), _ = sizes.most_common(1)[0]
    if len(sizes) > 1 or width != height:
        raise DataError(
            f"{root}: image_size is required, because the pictures do not share one square size (there are "
            f"{len(sizes)}, the most common is {width} x {height}). Give image_size, for example {min(width, height)}."
        )
    return width


def _picture_size(path: Path) -> tuple[int, int] | None:
    try:
        with open_picture(path) as image:
            return image.size
    except UnusablePicture:
        return None


def _decode_all(root: Path, files: list[Path], size: int) -> tuple[np.ndarray, np.ndarray, Skipped, list[str]]:
    """Decoded pictures [M, size, size, 3], the indices [M] of their files, the skipped files, and remarks."""
    images = np.empty((len(files), size, size, 3), np.uint8)
    skipped: Skipped = []
    usable: list[int] = []
    enlarged = animated = 0

    def load(file: Path) -> tuple[np.ndarray, tuple[int, int], bool] | str:
        try:
            return decode(file, size)
        except UnusablePicture as error:
            return str(error)

    for start, results in _in_threads(files, load, "Decoding pictures"):
        for index, result in enumerate(results, start):
            if isinstance(result, str):
                skipped.append((str(files[index].relative_to(root)), result))
                continue
            picture, original, several_frames = result
            images[len(usable)] = picture  # files come in order, so that skipping leaves no gaps
            usable.append(index)
            enlarged += min(original) < size
            animated += several_frames
    notes = []
    if enlarged:
        notes.append(f"{enlarged} of {len(usable)} pictures are smaller than {size} pixels and were enlarged.")
    if animated:
        notes.append(f"{animated} pictures hold several frames; the first of each is used.")
    return images[: len(usable)], np.array(usable, np.int64), skipped, notes


def _in_threads(
    files: list[Path], work: Callable[[Path], Result], description: str
) -> Iterator[tuple[int, list[Result]]]:
    """Yield (index of the first file, results) chunk by chunk, in order; Pillow decodes without Python's lock."""
    threads = min(THREADS, os.cpu_count() or 1)
    starts = range(0, len(files), CHUNK)
    running: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tvmatch-decode")
    try:
        submitted = 0
        for number in show_progress(range(len(starts)), description):
            while submitted < len(starts) and len(running) < 2 * threads:  # bounded: results must not pile up
                chunk = files[starts[submitted] : starts[submitted] + CHUNK]
                running.append(pool.submit(lambda chunk=chunk: [work(file) for file in chunk]))
                submitted += 1
            yield starts[number], running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _nothing(root: Path, skipped: Skipped) -> str:
    if skipped:
        return f"{root}: no file can be used as a picture; skipped {named(skipped)}."
    return (
        f"{root}: the folder holds no pictures. Put {', '.join(sorted(SUFFIXES))} files in it, one sub-folder a class."
    )
