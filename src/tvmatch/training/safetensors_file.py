"""Safetensors files, written down to the disk."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """What safetensors raises within the block where the disk refuses, as the `OSError` that it is."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file as `save_file` does, down to the disk; `OSError` if the disk refuses."""
    path.touch()
    mode = path.stat().st_mode  # what this user's files are given; save_file makes them private
    with disk_errors():
        save_file(tensors, path, metadata=metadata)
    path.chmod(mode)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
