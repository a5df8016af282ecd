"""`tvmatch statistics SOURCE OUT`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from tvmatch.cli.options import check_out, check_place, parse, warn

DESCRIPTION = """Statistics of a data set in the features of a network, which `tvmatch evaluate` compares samples with.

The defaults are those of the Inception network of published FIDs. Another network, DINOv2 say, as TorchScript:
--size 224 --resize bicubic --mean 123.675 116.28 103.53 --deviation 58.395 57.12 57.375

Run again, it continues what was killed. Several GPUs: torchrun --nproc-per-node 8 -m -- tvmatch statistics ..."""


@dataclass(frozen=True)
class StatisticsOptions:
    """What to describe."""

    source: tyro.conf.Positional[str]  # the pictures: as for `tvmatch train --data`
    out: tyro.conf.Positional[Path]  # the file to write, .safetensors
    features: Path  # a TorchScript network: pictures [B, 3, size, size] to features [B, D]
    size: int = 299  # pixels a side that the network sees
    resize: str = "legacy"  # legacy (the grid of the 2015 Inception), bilinear, bicubic
    mean: tuple[float, ...] = (128.0,)  # taken from the values 0..255: one number, or one a channel
    deviation: tuple[float, ...] = (128.0,)  # by which they are then divided, likewise
    image_size: int | None = None  # bring the pictures to this size first
    # a picture that cannot be used is an error; with --no-strict it is left out, or, where pictures are decoded one by
    # one, another of its class stands in for it, and the figures will say so
    strict: bool = True
    first: int | None = None  # only the first so many pictures
    # features kept for neighbours and kernels, chosen at random where there are more pictures (4 bytes a number: the
    # file of 50,000 of Inception has 440 MB)
    keep: int = 50_000
    batch_size: int = 500  # pictures at once
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one


def command(arguments: list[str]) -> int:
    """Gather the statistics and write them."""
    options = parse(StatisticsOptions, "statistics", DESCRIPTION, arguments)
    from tvmatch.data.opening import open_source
    from tvmatch.metrics.features import FeatureNetwork, Preprocessing
    from tvmatch.metrics.remarks import assumed_remark
    from tvmatch.metrics.statistics import check_replaceable, gather_statistics
    from tvmatch.training.ranks import join_ranks

    check_out(options.out, (".safetensors",))
    check_place(options.out)
    if options.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {options.batch_size}.")
    preprocessing = Preprocessing(options.size, options.resize, options.mean, options.deviation)
    with join_ranks("auto", options.device) as ranks:
        network = FeatureNetwork(options.features, preprocessing, ranks.device)
        source = open_source(options.source, options.image_size, options.strict)
        try:
            counts = len(source) if options.first is None else options.first, options.keep
            ranks.on_main(lambda: check_replaceable(options.out, source, options.source, network, *counts))
            gather_statistics(
                source, options.source, network, options.out, options.keep, ranks, options.batch_size, options.first
            )
        finally:
            source.close()
    if ranks.main:
        warn("statistics", assumed_remark(network))
        print(options.out)
    return 0
