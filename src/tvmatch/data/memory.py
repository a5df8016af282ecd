"""Refuse what does not fit into memory before it is read, instead of being killed half-way through."""

import contextlib
import os
from pathlib import Path

from tvmatch.data.source import DataError


def available_memory() -> int | None:
    """Bytes that a new array may take on this machine, or None where the system does not tell."""
    limits = []
    try:
        # MemAvailable counts the page cache that can be dropped; SC_AVPHYS_PAGES does not, and would refuse too much
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        try:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (ValueError, OSError, AttributeError):
            return None
    with contextlib.suppress(OSError, ValueError):  # a container's own limit; the text "max" is none
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raise `DataError` with both numbers if `needed` bytes for `what` exceed the memory that is available."""
    available = available_memory()
    if available is not None and needed > available:
        raise DataError(
            f"{what} need {needed / 2**30:.1f} GiB of memory, but only {available / 2**30:.1f} GiB are available. "
            f"{remedy}"
        )
