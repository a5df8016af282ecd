"""`tvmatch encode SOURCE OUT`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tvmatch.cli.options import parse, warn
from tvmatch.telling import tell

DESCRIPTION = """Encode pictures into latents, once, for training: tvmatch train --data OUT.

The same command continues an encoding that was stopped or killed.

Several GPUs: torchrun --nproc-per-node 8 -m -- tvmatch encode ..."""


@dataclass(frozen=True)
class EncodeOptions:
    """What to encode, and how."""

    source: tyro.conf.Positional[str]  # pictures: whatever `tvmatch train --data` reads
    out: tyro.conf.Positional[Path]  # a new folder, or one whose encoding is to be continued
    codec: str  # pixels, a folder, or a hub name of an autoencoder such as stabilityai/sd-vae-ft-mse
    image_size: int | None = None  # pixels a side that each picture is brought to
    flips: bool = True  # encode mirrored pictures too, for `tvmatch train --flip`
    strict: bool = False  # end with an error at the first picture that cannot be used instead of skipping it
    batch_size: int = 32  # pictures encoded at once
    shard_size: int = 1000  # pictures in one .tar file
    precision: Literal["float32", "bfloat16"] = "float32"  # of the codec; what is stored is float16
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one


def command(arguments: list[str]) -> int:
    """Encode, and say what came of it."""
    options = parse(EncodeOptions, "encode", DESCRIPTION, arguments)
    for name in ("batch_size", "shard_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}.")
    check_outside(options.source, options.out)
    import contextlib

    import torch

    from tvmatch.data.codecs import open_codec
    from tvmatch.data.encoding import (
        EncodingPlan,
        check_nothing_skipped,
        check_size,
        claim_plan,
        encode_shards,
        make_plan,
    )
    from tvmatch.data.encoding_manifest import write_manifest
    from tvmatch.data.folder_lock import holding
    from tvmatch.data.latent_shards import require_webdataset
    from tvmatch.data.naming import named
    from tvmatch.data.opening import open_pictures
    from tvmatch.data.progress import counting
    from tvmatch.data.source import contents
    from tvmatch.training.ranks import join_ranks

    require_webdataset()
    torch.backends.cudnn.deterministic = True  # a restart must give the same bits
    with join_ranks("auto", options.device) as ranks, contextlib.ExitStack() as stack:
        codec = open_codec(options.codec).to(ranks.device)
        reader = open_pictures(options.source, options.image_size, options.strict)
        plan = make_plan(reader, codec, options.flips, options.batch_size, options.shard_size, options.precision)

        def claim() -> EncodingPlan:
            stack.enter_context(holding(options.out))
            check_size(plan, options.out)
            claimed = claim_plan(options.out, plan)
            if options.strict:
                check_nothing_skipped(options.out, claimed)
            return claimed

        stack.callback(reader.close)
        plan = ranks.on_main(claim)
        if ranks.main:
            tell(f"{options.source}: {contents(reader)}")
        with counting("Encoding", -(-plan.pictures // ranks.count), show=ranks.main) as done:
            encode_shards(reader, codec, plan, options.out, ranks.device, ranks.rank, ranks.count, done)
        if ranks.control is not None:
            torch.distributed.barrier(ranks.control)
        manifest = ranks.on_main(lambda: write_manifest(options.out, plan, reader.skipped_when_opened))
        if ranks.main:
            skipped = [tuple(entry) for entry in manifest["skipped"]]
            if skipped:
                warn("encode", f"skipped {named(skipped)} (--strict makes this an error)")
            empty = [name for name, n in zip(plan.class_names, manifest["pictures_of_class"], strict=False) if not n]
            if empty:
                warn("encode", f"{len(empty)} classes have no picture: {', '.join(map(repr, empty[:10]))}")
            print(summary(options.out, manifest), file=sys.stderr)
            print(f"train with: tvmatch train --data {options.out} --run RUN")
    return 0


def check_outside(source: str, out: Path) -> None:
    """Raise `ValueError` for OUT inside a folder of pictures: it would be one of its class folders from then on, with
    which neither the encoding could be continued nor the pictures be opened."""
    from tvmatch.data.opening import is_picture_folder

    pictures = Path(source).expanduser()
    if not is_picture_folder(pictures):
        return
    folder, inside = pictures.resolve(), out.resolve()
    if folder not in inside.parents:
        return
    if not any(part.startswith(".") for part in inside.relative_to(folder).parts):  # those are not looked at
        raise ValueError(
            f"{out} lies inside {source}, whose sub-folders are its classes; give a folder outside, for example "
            f"{pictures.parent / (folder.name + '-latents')}."
        )


def summary(out: Path, manifest: dict[str, Any]) -> str:
    """Counts, shape and round trip in one line."""
    shape = "x".join(map(str, manifest["latent_space"]["shape"]))
    quality, text = manifest["psnr"], "round trip exact"
    if quality["mean"] is not None:
        text = f"round-trip PSNR {quality['mean']:.2f} dB on average, {quality['lowest']:.2f} at least"
    mirrored = " and mirrored" if manifest["flips"] else ""
    return (
        f"{out}: {manifest['pictures']['encoded']} pictures{mirrored} as latents {shape} in {len(manifest['shards'])} "
        f"shards; {text} ({quality['pictures']} pictures measured)"
    )
