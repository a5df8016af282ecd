"""Tiny autoencoders of the TAESD family (https://github.com/madebyollin/taesd, MIT), TAEF2 with its middle blocks
included, which `diffusers.AutoencoderTiny` cannot hold.

Such a codec is two files of numbered layers, `*encoder.safetensors` and `*decoder.safetensors`. Their names and shapes
tell the network: 3x3 convolutions; residual blocks of three, with or without a pooled branch (1x1 up by 4, group norm
of 4 groups, ReLU, 1x1 down); where a convolution without bias stands between the blocks, the resolution changes by 2.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tvmatch.data.codecs.base import CodecError, Posterior, check_pictures, weights_hash

GROUPS = 4  # of the norm in a pooled branch; with any other number the round trip of TAEF2 loses 3 dB or more
REACH = 3.0  # the decoder brings latents softly into -3 .. 3 first
LAYER = re.compile(r"(\d+)\.(.+)")
Shapes = Mapping[str, Sequence[int]]  # of weights, by their names


class TinyCodec:
    """A tiny autoencoder from a folder with `*encoder.safetensors` and `*decoder.safetensors`."""

    has_deviation = False

    def __init__(self, folder: Path) -> None:
        self.spec = str(folder.resolve())
        encoder, decoder = (_load(_one_file(folder, part)) for part in ("encoder", "decoder"))
        try:
            self.network = network_of(
                *({name: value.shape for name, value in half.items()} for half in (encoder, decoder))
            )
            self.network["encoder"].load_state_dict(encoder)
            self.network["decoder"].load_state_dict(decoder)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CodecError(f"{folder}: its weights are not of the TAESD family ({error}).") from error
        self.network.float().requires_grad_(False).eval()
        self.channels = self.network["encoder"][-1].out_channels
        self.factor = 2 ** sum(layer.stride == (2, 2) for layer in self.network["encoder"] if _is_convolution(layer))
        self.hash = weights_hash("TinyCodec", {}, self.network)

    def encode(self, x: Tensor) -> Posterior:
        check_pictures(x, self.factor)
        return Posterior(self.network["encoder"](x.float() * 0.5 + 0.5), None)

    def decode(self, latents: Tensor) -> Tensor:
        return self.network["decoder"](latents.float()) * 2 - 1

    def to(self, device: torch.device | str) -> "TinyCodec":
        self.network.to(device)
        return self


def network_of(encoder: Shapes, decoder: Shapes) -> nn.ModuleDict:
    """The two halves whose weights have these names and shapes."""
    return nn.ModuleDict({"encoder": _encoder(encoder), "decoder": _decoder(decoder)})


class Block(nn.Module):
    """x + pooled branch(x), then relu(three convolutions + x)."""

    def __init__(self, channels: int, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.pool: nn.Module | None = None
        if pooled:
            wide = 4 * channels
            self.pool = nn.Sequential(
                nn.Conv2d(channels, wide, 1, bias=False),
                nn.GroupNorm(GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, channels, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class SoftClamp(nn.Module):
    """REACH tanh(x / REACH)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / REACH) * REACH


def _encoder(shapes: Shapes) -> nn.Sequential:
    """Convolution, block, (convolution that halves, blocks) three times, convolution."""
    return nn.Sequential(*(_layer(shapes, number, stride=2) for number in _numbers(shapes)))


def _decoder(shapes: Shapes) -> nn.Sequential:
    """Soft clamp, convolution, ReLU, (blocks, doubling, convolution) three times, block, convolution. The numbers that
    the weights leave out are the layers without any."""
    present = set(_numbers(shapes))
    layers: list[nn.Module] = []
    for number in range(max(present) + 1):
        if number in present:
            layers.append(_layer(shapes, number, stride=1))
        elif number == 0:
            layers.append(SoftClamp())
        elif _is_convolution(layers[-1]):
            layers.append(nn.ReLU())
        else:
            layers.append(nn.Upsample(scale_factor=2))
    return nn.Sequential(*layers)


def _layer(shapes: Shapes, number: int, stride: int) -> nn.Module:
    """The layer whose weights carry this number; `stride` is that of a convolution without bias."""
    if f"{number}.conv.0.weight" in shapes:
        return Block(shapes[f"{number}.conv.0.weight"][0], pooled=f"{number}.pool.0.weight" in shapes)
    outputs, inputs, _, _ = shapes[f"{number}.weight"]
    bias = f"{number}.bias" in shapes
    return nn.Conv2d(inputs, outputs, 3, padding=1, stride=1 if bias else stride, bias=bias)


def _numbers(shapes: Shapes) -> list[int]:
    """The numbers of the layers, in order."""
    found = [LAYER.fullmatch(name) for name in shapes]
    if not found or None in found:
        raise ValueError(f"layers are numbered, unlike {sorted(shapes)[0] if shapes else 'nothing'!r}")
    return sorted({int(match[1]) for match in found})


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


def _one_file(folder: Path, part: str) -> Path:
    """The one `*{part}.safetensors` of a folder."""
    found = sorted(folder.glob(f"*{part}.safetensors"))
    if len(found) == 1:
        return found[0]
    if not found and sorted(folder.glob(f"*{part}.pth")):
        raise CodecError(
            f"{folder} holds .pth files, which are pickles and never opened here. Convert them once: "
            f"python -m tvmatch.data.codecs.tiny {folder} NEW_FOLDER"
        )
    raise CodecError(f"{folder} must hold one *{part}.safetensors, found {len(found)}.")


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CodecError(f"{path} is damaged ({error}); copy it again.") from error


def convert(source: Path, target: Path) -> None:
    """Write the `*encoder.pth` and `*decoder.pth` of a folder, and its licence, as safetensors into a new folder.

    torch's restricted unpickler reads them: it builds tensors and runs nothing. Raises `CodecError`, before anything is
    written.
    """
    halves = {}
    for part in ("encoder", "decoder"):
        found = sorted(source.glob(f"*{part}.pth"))
        if len(found) != 1:
            raise CodecError(f"{source} must hold one *{part}.pth, found {len(found)}.")
        halves[found[0].stem] = _unpickle(found[0])
    target.mkdir(parents=True, exist_ok=True)
    for stem, tensors in halves.items():
        save_file({name: value.contiguous() for name, value in tensors.items()}, target / f"{stem}.safetensors")
    for licence in source.glob("LICENSE*"):
        (target / licence.name).write_bytes(licence.read_bytes())


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # many kinds, and torch's own text advises to run what is inside
        raise CodecError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors. Copy it again."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CodecError(f"{path} holds no named tensors; give the file of a state dict.")
    return tensors


def main(arguments: list[str]) -> None:
    """`python -m tvmatch.data.codecs.tiny OLD NEW`; ends with one line where that cannot be done."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m tvmatch.data.codecs.tiny OLD_FOLDER NEW_FOLDER")
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except (CodecError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
