"""`tvmatch train`."""

from tvmatch.cli.options import given, parse, take_option
from tvmatch.telling import print_result, tell
from tvmatch.training.config import TrainConfig
from tvmatch.training.recipes import find_recipe

DESCRIPTION = """Train a generator. Without arguments: handwritten digits, in a few minutes on a laptop.

Pictures of your own: tvmatch train --run runs/mine --data FOLDER --image-size 64 --network DiT-S/4

A recipe sets all options, and others go before it: tvmatch train --recipe cifar10 --data FILE --run RUN (`tvmatch
presets` lists them).

Ctrl-C or SIGTERM ends with a checkpoint and exit code 130 or 143; the same command continues.

Several GPUs: torchrun --nproc-per-node 8 -m -- tvmatch train ..."""


def read_config(arguments: list[str]) -> TrainConfig:
    """The configuration that these arguments ask for; `ValueError` for a recipe that lacks what it needs."""
    name, arguments = take_option("--recipe", arguments)
    default = TrainConfig() if name is None else find_recipe(name).config()
    config = parse(TrainConfig, "train", DESCRIPTION, arguments, default=default)
    if name is not None and not given("--run", arguments):
        raise ValueError(f"--recipe {name} needs a folder for the run: --run FOLDER.")
    if name is not None and not given("--data", arguments):
        raise ValueError(f"--recipe {name} needs data: --data FOLDER_OR_FILE.")
    return config


def command(arguments: list[str]) -> int:
    """Train as the options say; exit code 128 + signal if a signal ended it before it was complete."""
    config = read_config(arguments)
    from tvmatch.training.loop import train

    result = train(config)
    if result.signal is not None and not result.complete:
        return 128 + result.signal
    if result.rank > 0:
        return 0
    tell(f"{config.run}: {result.step} steps, {result.images_per_second:.0f} images/s")
    print_result("train", f"draw with: tvmatch sample {config.run}")
    return 0
