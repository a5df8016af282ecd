"""`tvmatch sample RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from tvmatch.cli.options import check_no_checkpoint, check_out, check_place, check_seed, parse, refuse_ranks, warn


@dataclass(frozen=True)
class SampleOptions:
    """What to draw."""

    run: tyro.conf.Positional[Path]  # folder of a trained run, or a file of `tvmatch export`
    out: Path | None = None  # a .png, an .npz (images, labels), or a folder for PNGs (default: RUN/drawn.png)
    count: int = 64  # pictures in all, spread over the classes
    nfe: int | None = None  # network calls a picture (default: 1, or what an imported model says)
    w: float | None = None  # guidance scale (default: the one trained for)
    # names or numbers (default: all in turn)
    classes: Annotated[tuple[str, ...], tyro.conf.arg(name="class", help_behavior_hint="")] = ()
    # default: euler for flow matching, consistency (fresh noise between calls) for consistency training, else jump
    method: Literal["jump", "euler", "consistency"] | None = None
    seed: int = 0  # of the noise: picture i depends on it and i alone
    ema: float | None = None  # which averaged weights, by decay (default: the slowest)
    batch_size: int = 256  # pictures drawn at once
    codec: str | None = None  # of a model of latents: where its codec lies now (default: where it lay in training)
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one


def command(arguments: list[str]) -> int:
    """Draw samples and write them where asked."""
    options = parse(SampleOptions, "sample", "Draw pictures with a trained run.", arguments)
    from tvmatch.data.latent_space import picture_maker
    from tvmatch.devices import choose_device
    from tvmatch.files import replacing
    from tvmatch.pictures import enlarge, save_png, tile
    from tvmatch.sampling import draw, untaught
    from tvmatch.training.trained import load_run

    refuse_ranks("one process draws")
    for name in ("count", "nfe", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}.")
    check_seed(options.seed)
    out = options.out or (options.run.parent if options.run.is_file() else options.run) / "drawn.png"
    check_out(out, (".png", ".npz"), folder=True)
    check_no_checkpoint(options.out)
    check_place(out)
    if options.count < len(options.classes):
        raise ValueError(
            f"--count {options.count} pictures leave some of the {len(options.classes)} classes out; raise --count."
        )
    device = choose_device(options.device)
    trained = load_run(options.run, options.ema, device)
    trained.check_codec(options.codec)
    to_pictures = picture_maker(trained.latent_space, device, options.codec)
    if trained.undecoded:
        channels, written = trained.flow.network.data_shape[0], "the latents themselves are written."
        if out.suffix != ".npz":
            written = (
                f"the pictures are the first of {channels} channels, cut to [-1, 1], in grey. Give --out NAME.npz for "
                "the latents themselves, or import the model again with its --codec."
            )
        warn("sample", f"the codec of this model of latents is not known: {written}")
    w = trained.w if options.w is None else options.w
    warn("sample", trained.check_w(w))
    nfe, method = options.nfe or trained.nfe, options.method or trained.method
    warn("sample", untaught(trained.objective, method, nfe))
    chosen = [trained.class_index(name) for name in options.classes]
    classes = chosen or list(range(trained.flow.network.num_classes)) or [-1]
    label = torch.tensor([classes[i % len(classes)] for i in range(options.count)])
    x = draw(
        trained.flow,
        label,
        w,
        nfe,
        seed=options.seed,
        method=method,
        batch_size=options.batch_size,
    )
    pictures = to_pictures(x)
    if out.suffix == ".png":
        columns = len(classes) if 1 < len(classes) <= 20 else int(np.ceil(np.sqrt(options.count)))
        save_png(enlarge(tile(pictures, columns), 48, pictures.shape[1]), out)
    elif out.suffix == ".npz":
        # without classes there are no labels: the file is again a data set that `tvmatch train --data` reads
        arrays = {"latents": x.numpy()} if trained.undecoded else {"images": pictures}
        arrays |= {"labels": label.numpy()} if trained.flow.network.num_classes else {}
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file:
            np.savez_compressed(file, **arrays)
    else:
        save_folder(pictures, out)
    print(out)
    return 0


def save_folder(pictures: np.ndarray, out: Path) -> None:
    """One PNG a picture in a new folder, which appears when it is complete."""
    from tvmatch.files import new_folder
    from tvmatch.pictures import save_png

    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as folder:
        for index, picture in enumerate(pictures):
            save_png(picture if picture.shape[-1] == 3 else picture[..., 0], folder / f"{index:06d}.png")
