"""One writer a folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tvmatch.data.source import DataError
from tvmatch.files import locked


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Make a folder and hold it for the length of a block; `DataError` if another process holds it, or it is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"{folder} is a file; give a new folder.") from error
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror or error}; give another folder.") from error
    busy = DataError(f"{folder}: another process encodes into it; wait for it, or give another folder.")
    with locked(folder, busy):
        yield
