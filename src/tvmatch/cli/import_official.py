"""`tvmatch import-official SNAPSHOT.pkl OUT`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from tvmatch.cli.options import parse, warn


@dataclass(frozen=True)
class ImportOptions:
    """What to read, and what the snapshot does not say."""

    snapshot: tyro.conf.Positional[Path]  # an official .pkl; nothing in it is executed
    out: tyro.conf.Positional[Path]  # the new folder of the model
    guidance: str = "2"  # how w was drawn in training: a scale (2), a range (1:3), or inverse
    w: float | None = None  # guidance scale to sample with (default: what --guidance implies)
    nfe: int = 1  # network calls to sample with
    scaled: bool | None = None  # scaled parameterisation, of a snapshot that does not say
    data: str | None = None  # what it was trained on, for `evaluate`: pictures, or latents of `tvmatch encode`
    codec: str | None = None  # of a model of latents, without --data: a name or a folder
    mean: tuple[float, ...] = ()  # with --codec: mean of each channel of the latents
    deviation: tuple[float, ...] = ()  # with --codec: deviation of each channel


def command(arguments: list[str]) -> int:
    """Write the folder and print its name."""
    options = parse(ImportOptions, "import-official", "Read a snapshot of the official implementation.", arguments)
    from tvmatch.integrations.importing import Defaults, import_official, open_surroundings

    snapshot = import_official(
        options.snapshot,
        options.out,
        Defaults(options.guidance, options.w, options.nfe, options.scaled),
        lambda network: open_surroundings(network, options.data, options.codec, options.mean, options.deviation),
    )
    if "do_scale_param" not in snapshot.attributes:
        warn("import-official", "the snapshot holds tensors only; what it does not say is taken from the paper.")
    print(options.out)
    return 0
