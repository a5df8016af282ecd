"""The one place that turns a codec's name into a codec."""

from pathlib import Path

from tvmatch.data.codecs.base import Codec, CodecError
from tvmatch.data.codecs.pixels import PixelCodec


def open_codec(spec: str, expected_hash: str | None = None) -> Codec:
    """Open a codec, on the CPU.

    spec           `pixels`; a folder with `*encoder.safetensors` and `*decoder.safetensors` (TAESD family); or a folder
                   or hub name of diffusers' AutoencoderKL or AutoencoderTiny, `NAME:SUBFOLDER` where it lies deeper
    expected_hash  raise if the codec has another hash: latents mean nothing to any codec but their own

    Raises `CodecError`.
    """
    codec = _open(spec)
    if expected_hash is not None and codec.hash != expected_hash:
        raise CodecError(
            f"codec {spec!r} has the hash {codec.hash[:12]}, but {expected_hash[:12]} is needed: its weights are not "
            "those that the latents were made with. Give that codec, or encode the pictures again."
        )
    return codec


def _open(spec: str) -> Codec:
    if spec == "pixels":
        return PixelCodec()
    if not spec:
        raise CodecError("the name of the codec is empty; give `pixels`, a hub name or a local folder.")
    folder = Path(spec).expanduser()
    if folder.is_file():
        raise CodecError(f"codec {spec!r} is a file; give the folder that holds it.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        from tvmatch.data.codecs.tiny import TinyCodec

        return TinyCodec(folder)
    from tvmatch.data.codecs.from_diffusers import DiffusersCodec, class_of

    name, subfolder = (str(folder), None) if folder.is_dir() else (spec, None)
    if not folder.is_dir() and ":" in spec:
        name, subfolder = spec.rsplit(":", 1)
    return DiffusersCodec(
        str(folder.resolve()) if folder.is_dir() else spec, class_of(spec, name, subfolder), name, subfolder
    )
