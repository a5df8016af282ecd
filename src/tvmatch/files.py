"""Files and folders that appear whole or not at all, and folders with one writer."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that takes the name `path` at the end of the block.

    The bytes go to `.NAME.tmp` beside it and reach the disk first. On any error, an interrupt included, that file is
    removed and what `path` held before stays. A kill may leave it; the next writer of `path` starts it anew. Of two
    writers at once the second waits for the first, and `path` is then its.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _claimed(temporary):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # a read-only disk refuses this too; the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


@contextlib.contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """Make a file and hold it for the length of a block, once no other process does. Where there are no locks, none."""
    if fcntl is None:
        yield
        return
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, temporary):
                yield
                return
            # who held it has given it the name that it was for, or removed it
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `path`, which nothing may have yet, at the end of the block; on any
    error it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def locked(folder: Path, refusal: Exception) -> Iterator[None]:
    """Hold a folder that is there for the length of a block; raises `refusal` if another process holds it.

    The lock is the system's, on the folder itself: it ends with the process, however that ends. Where a system or a
    file system has no locks, nothing is held.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise refusal from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names of the files in a folder durable: on POSIX they belong to it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())
