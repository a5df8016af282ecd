"""Safetensors files, written down to the disk."""

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file as `save_file` does, down to the disk; `OSError` if the disk refuses."""
    path.touch()
    mode = path.stat().st_mode  # what this user's files are given; save_file makes them private
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    path.chmod(mode)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
