"""One writer a folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tvmatch.data.source import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Make a folder and hold it for the length of a block; `DataError` if another process holds it, or it is a file.

    The lock is the system's, on the folder itself: it ends with the process, however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"{folder} is a file; give a new folder.") from error
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror or error}; give another folder.") from error
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{folder}: another process encodes into it; wait for it, or give another folder."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
