"""Rows of a command that can be stopped and continued: those of other settings are neither mixed nor overwritten."""

import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import torch


def kept_rows(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that `out` holds; none where it is not there.

    `SystemExit` where they are of other settings than these: the first new result would take their place.
    """
    if not out.exists():
        return []
    before = json.loads(out.read_text())
    told = json.loads(json.dumps(settings))  # tuples are lists in a file
    others = [
        f"{name} {before.get(name)} there, {value} now" for name, value in told.items() if before.get(name) != value
    ]
    if others:
        raise SystemExit(f"{out} holds results of other settings ({'; '.join(others)}); give another --out.")
    return before["rows"]


def machine() -> str:
    """Processor and PyTorch, as results tell them."""
    return f"{processor()}, torch {torch.__version__}"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def sources(rows: list[dict[str, Any]]) -> str:
    """How many rows are of which commit; a + stands for changes that were not committed then."""
    counted = Counter(row.get("commit") for row in rows)
    return ", ".join(f"{count} rows of {commit or 'before commits were recorded'}" for commit, count in counted.items())
