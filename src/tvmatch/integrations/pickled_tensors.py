"""Tensors as PyTorch puts them into a plain pickle: bytes of `torch.save` in its older format, and views."""

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvmatch.integrations.inert_pickle import Global, PickleError, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MOST_DIMENSIONS = 64  # of a tensor; counting the numbers of thousands takes minutes
LARGEST = 2**48  # of what a shape, its empty dimensions left out, may claim: PyTorch's strides end at 2^63
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
STORAGES = {f"torch.{name}": Global(f"torch.{name}") for name in DTYPES}


@dataclass(frozen=True, eq=False)
class Storage:
    """The numbers of one or more tensors, still as bytes of the file."""

    content: memoryview
    dtype: torch.dtype
    size: int  # numbers


@dataclass(frozen=True, eq=False)
class TensorView:
    """A tensor that is not made yet: where its numbers lie. Checked against the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def tensor(self) -> Tensor:
        """A copy of the numbers, contiguous."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        start = self.offset * self.storage.dtype.itemsize
        flat = torch.frombuffer(bytearray(self.storage.content[start : start + self.nbytes]), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.strides).contiguous()


def load_storage(content: Any) -> Storage:
    """What `torch.storage._load_from_bytes` would make of `content`: one storage, read without executing anything.

    Raises `PickleError` unless the bytes are exactly one storage of the announced size.
    """
    if not isinstance(content, bytes):
        raise PickleError(f"a tensor's numbers are a {type(content).__name__} instead of bytes")
    file = io.BytesIO(content)
    if read_pickle(file, {}) != MAGIC or read_pickle(file, {}) != PROTOCOL:
        raise PickleError("a tensor's numbers do not start as PyTorch's do")
    system = read_pickle(file, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("a tensor's numbers are not little-endian")
    described = read_pickle(file, STORAGES, _describe_storage)
    keys = read_pickle(file, {})
    if not isinstance(described, tuple) or keys != [described[1]]:
        raise PickleError("a tensor's numbers are not one storage")
    dtype, _, size = described
    rest = memoryview(content)[file.tell() :]
    announced = struct.unpack_from("<q", rest)[0] if len(rest) >= 8 else -1
    if announced != size or len(rest) - 8 != size * dtype.itemsize:
        raise PickleError(f"a tensor announces {size} numbers of {dtype}, and {max(len(rest) - 8, 0)} bytes follow")
    return Storage(rest[8:], dtype, size)


def _describe_storage(identifier: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, key, numbers) from the persistent id ('storage', type, key, device, numbers, None)."""
    match identifier:
        case ("storage", Global(name=name), str(key), str(), int(size), None) if size >= 0 and name in STORAGES:
            return DTYPES[name.removeprefix("torch.")], key, size
    raise PickleError("a tensor's numbers refer to a persistent id, something outside the file")


def rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any = False, hooks: Any = None, *_: Any
) -> TensorView:
    """What `torch._utils._rebuild_tensor_v2` would make; `PickleError` if the view leaves its storage or claims more
    numbers than there are."""
    if not isinstance(storage, Storage):
        raise PickleError(f"a tensor is made of a {type(storage).__name__}")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and 0 <= number < LARGEST for number in numbers):
        raise PickleError(f"a tensor has shape {shape!r:.100} and strides {strides!r:.100}")
    if len(shape) > MOST_DIMENSIONS or math.prod(max(size, 1) for size in shape) >= LARGEST:
        raise PickleError(f"a tensor of {len(shape)} dimensions and shape {list(shape)!r:.100} is too large")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if count and (last >= storage.size or last - offset + 1 != count):  # the second: gaps, or one number many times
        raise PickleError(f"a tensor of shape {list(shape)!r:.100} does not fit into its {storage.size} numbers")
    if hooks:
        raise PickleError("a tensor carries hooks")
    return TensorView(storage, offset, tuple(shape), tuple(strides))


def rebuild_parameter(data: Any, requires_grad: Any, hooks: Any) -> TensorView:
    """What `torch._utils._rebuild_parameter` would make."""
    if not isinstance(data, TensorView) or hooks:
        raise PickleError("a parameter is not a tensor, or carries hooks")
    return data


TENSORS = {
    "torch.storage._load_from_bytes": Global("torch.storage._load_from_bytes", load_storage),
    "torch._utils._rebuild_tensor_v2": Global("torch._utils._rebuild_tensor_v2", rebuild_tensor),
    "torch._utils._rebuild_parameter": Global("torch._utils._rebuild_parameter", rebuild_parameter),
}
