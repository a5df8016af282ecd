"""`tvmatch presets`."""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from tvmatch.cli.options import parse
from tvmatch.networks.presets import NETWORKS, UNETS, build_network, network_config
from tvmatch.training.recipes import RECIPES


@dataclass(frozen=True)
class PresetsOptions:
    """Which pictures the sizes are counted for."""

    image_size: int = 32  # pixels (or latent cells) a side
    channels: int = 4  # of the pictures (or latents)
    classes: int = 1000  # 0: unconditional


def command(arguments: list[str]) -> int:
    """Print every network preset with its shape, tokens and parameters, and every recipe."""
    options = parse(PresetsOptions, "presets", "List the networks and their sizes.", arguments)
    table = Table(title=f"Networks for {options.channels} x {options.image_size} x {options.image_size} data")
    for column in ("--network", "hidden", "depth", "heads", "patch", "tokens", "parameters"):
        table.add_column(column, justify="left" if column == "--network" else "right")
    for name, (size, patch) in NETWORKS.items():
        if options.image_size % patch:
            continue
        with torch.device("meta"):
            shape = network_config(name, options.image_size, options.channels, options.classes)
            parameters = sum(p.numel() for p in build_network(shape).parameters())
        tokens = (options.image_size // patch) ** 2
        table.add_row(
            name, *map(str, (size.hidden_size, size.depth, size.num_heads, patch, tokens)), f"{parameters / 1e6:.1f} M"
        )
    for name, unet in UNETS.items():
        if options.image_size % 2 ** (len(unet.multipliers) - 1):
            continue
        with torch.device("meta"):
            shape = network_config(name, options.image_size, options.channels, options.classes)
            parameters = sum(p.numel() for p in build_network(shape).parameters())
        widths = "-".join(str(unet.base_channels * multiplier) for multiplier in unet.multipliers)
        table.add_row(name, widths, str(unet.blocks), "", "", "", f"{parameters / 1e6:.1f} M")
    Console().print(table)
    print("Recipes, for `tvmatch train --recipe NAME`:")
    for name, recipe in RECIPES.items():
        print(f"  {name:<14} {recipe.config().network} on {'x'.join(map(str, recipe.shape))}; {recipe.figure}")
    return 0
