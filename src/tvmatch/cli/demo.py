"""`tvmatch demo RUN`."""

import shlex
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from tvmatch.cli.options import parse, warn

if TYPE_CHECKING:
    from tvmatch.training.trained import TrainedRun


@dataclass(frozen=True)
class DemoOptions:
    """What to show, and where."""

    run: tyro.conf.Positional[Path]  # folder of a trained run, or a file of `tvmatch export`
    # a run to draw beside it in Euler steps, such as one of flow matching (default: the same network's velocity)
    beside: Path | None = None
    static: Path | None = None  # write a page that needs no server into this new folder, instead of serving one
    host: str | None = None  # address to serve at (default: 127.0.0.1, which only this machine reaches)
    port: int | None = None  # default: the first free one from 7860
    # which averaged weights of RUN, by decay (default: the slowest, which --beside always has)
    ema: float | None = None
    codec: str | None = None  # of a model of latents: where its codec lies now (default: where it lay in training)
    device: str | None = None  # auto (the default), cpu or cuda
    weights: Literal["float32", "float16", "int8"] | None = None  # static: how they are stored (default: int8)
    # static: onnxruntime-web, a folder or the .tgz of `npm pack` (default: the cache; fetched by npm the first time)
    runtime: Path | None = None


SERVING, STATIC = ("beside", "host", "port", "codec", "device"), ("weights", "runtime")


def command(arguments: list[str]) -> int:
    """Serve the page until interrupted, or write the static one."""
    options = parse(DemoOptions, "demo", "A page that draws with a trained run.", arguments)
    for name in SERVING if options.static else STATIC:
        if getattr(options, name) is not None:
            where = "is of the page that a server answers" if options.static else "belongs to --static"
            raise ValueError(f"--{name} {getattr(options, name)} {where}; leave it out.")
    return _static(options, options.static) if options.static else _serve(options)


def _serve(options: DemoOptions) -> int:
    from tvmatch.data.latent_space import picture_maker
    from tvmatch.demo.drawing import Artist
    from tvmatch.demo.page import serve
    from tvmatch.devices import choose_device
    from tvmatch.training.trained import load_run

    if options.port is not None and not 1 <= options.port <= 65535:
        raise ValueError(f"port must be 1 to 65535, got {options.port}.")
    device = choose_device(options.device or "auto")
    run = load_run(options.run, options.ema, device)
    run.check_codec(options.codec)
    _check_pictures(run, options.run)
    to_pictures = picture_maker(run.latent_space, device, options.codec)
    beside = beside_to_pictures = None
    if options.beside is not None:
        beside = load_run(options.beside, device=device)
        _check_pictures(beside, options.beside)
        beside_to_pictures = picture_maker(beside.latent_space, device, options.codec)
    artist = Artist(run, to_pictures, beside, beside_to_pictures)
    host = options.host or "127.0.0.1"
    if host not in ("127.0.0.1", "localhost", "::1"):
        warn("demo", f"--host {host}: whoever reaches this machine can draw with this run; there is no password.")
    served = serve(artist, _name(options.run), host, options.port)
    try:
        print(f"{served.url} (Ctrl-C ends it)", flush=True)
        _until_interrupted()
    finally:
        served.close()
    return 0


def _check_pictures(run: "TrainedRun", folder: Path) -> None:
    if run.undecoded:
        channels = run.flow.network.data_shape[0]
        raise ValueError(f"{folder} draws {channels} channels and names no codec that makes pictures of them.")


def _name(run: Path) -> str:
    return run.stem if run.is_file() else run.resolve().name


def _until_interrupted() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _static(options: DemoOptions, out: Path) -> int:
    from tvmatch.demo.static_page import write_static_page
    from tvmatch.training.trained import load_run

    run = load_run(options.run, options.ema)
    report = write_static_page(run, _name(options.run), out, options.weights or "int8", options.runtime)
    print(out)
    print(f"{report.model:,} bytes of model, {report.runtime:,} of onnxruntime-web. Any web server serves the folder:")
    print(f"python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(out))} 8000")
    return 0
