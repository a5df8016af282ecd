"""The page of `tvmatch demo RUN`, by gradio. It loads nothing from elsewhere and reports to nobody."""

import html
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from tvmatch.demo.drawing import EULER_STEPS, Artist
from tvmatch.demo.request import LARGEST_SEED, MOST_CALLS, MOST_PICTURES, class_choices, read_request
from tvmatch.guidance import FixedGuidance, UniformGuidance, parse_guidance
from tvmatch.training.trained import TrainedRun

PICTURES_KEPT = 3600  # seconds that the files of drawn pictures stay
FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # gradio's own come from another server


@dataclass(frozen=True)
class Served:
    """A page that is being served; `close` ends it and removes its files."""

    url: str
    close: Callable[[], None]


def serve(artist: Artist, name: str, host: str = "127.0.0.1", port: int | None = None) -> Served:
    """Serve the page from a thread of its own; returns once it answers. `port` None: the first free one from 7860.

    Raises `OSError` for a port that is taken or a host that is not this machine's.
    """
    _check_address(host, port)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"  # of IPv6: gradio puts it into the page's URL as it is
    files = tempfile.TemporaryDirectory(prefix="tvmatch-demo-")
    before = os.environ.get("GRADIO_TEMP_DIR")

    def remove_files() -> None:
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before
        files.cleanup()

    os.environ["GRADIO_TEMP_DIR"] = files.name  # read when gradio is imported, and again for every picture
    try:
        gradio = _gradio()
        page = build_page(artist, name)
        artist.warm_up()
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            theme=gradio.themes.Base(font=FONTS[0], font_mono=FONTS[1]),
            css=".pixels img {image-rendering: pixelated}",
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
        )
    except BaseException:
        remove_files()
        raise

    def close() -> None:
        page.close(verbose=False)
        remove_files()

    return Served(url, close)


def build_page(artist: Artist, name: str) -> Any:
    """The `gradio.Blocks` of the page; its one request is called `draw`."""
    gradio = _gradio()
    run = artist.run
    intro, headings = introduction(artist), headings_of(artist)
    classed = run.flow.network.num_classes > 0
    low, high = guidance_range(run)
    with gradio.Blocks(
        title=f"tvmatch: {name}", analytics_enabled=False, delete_cache=(PICTURES_KEPT, PICTURES_KEPT)
    ) as page:
        gradio.Markdown(f"# {html.escape(name)}\nDrawn by tvmatch. {intro}")
        with gradio.Row():
            choices = class_choices(run)
            chosen = gradio.Dropdown(choices, value=choices[0], label="class", visible=classed, allow_custom_value=True)
            calls = gradio.Slider(1, MOST_CALLS, run.nfe, step=1, label="calls")
            w = gradio.Slider(low, high, run.w, step=0.05, label="w (guidance scale)", visible=classed)
        with gradio.Row():
            seed = gradio.Number(0, label="seed", precision=0, minimum=0, maximum=LARGEST_SEED)
            pictures = gradio.Slider(1, MOST_PICTURES, 16, step=1, label="pictures")
            compare = gradio.Checkbox(
                artist.compares, label=f"{EULER_STEPS} Euler steps beside it", visible=artist.compares
            )
        draw = gradio.Button("draw", variant="primary")
        note = gradio.Markdown()
        with gradio.Row():
            shown = []
            for heading, seen in zip(headings, (True, artist.compares), strict=True):
                with gradio.Column(visible=seen):
                    gradio.Markdown(f"### {heading}")
                    spent = gradio.Number(label="milliseconds, all pictures together", interactive=False)
                    picture = gradio.Image(
                        show_label=False, format="png", interactive=False, buttons=["download"], elem_classes="pixels"
                    )
                    shown += [picture, spent]
        inputs = [chosen, calls, w, seed, pictures, compare]
        for component in inputs:  # checked in `read_request` alone, which has a sentence for whatever comes
            component.preprocess = lambda value: value

        def answer(
            chosen: Any, calls: Any, w: Any, seed: Any, pictures: Any, compare: Any
        ) -> Iterator[tuple[str, str, float, str | None, float | None]]:
            compare = compare and artist.compares
            try:
                request = read_request(run, chosen, calls, w, seed, pictures)
                warnings = {run.check_w(request.w), artist.beside.check_w(request.w) if compare else None} - {None}
                said = html.escape(" ".join(sorted(warnings)), quote=False)
                first = artist.draw(request)
                left = said, keep(first.sheet, Path(picture.GRADIO_CACHE)), round(first.milliseconds, 2)
                yield *left, None, None
                if compare:
                    second = artist.flow_matching(request)
                    yield *left, keep(second.sheet, Path(picture.GRADIO_CACHE)), round(second.milliseconds, 2)
            except ValueError as error:
                sentence = html.escape(str(error), quote=False)
                raise gradio.Error(sentence, title="That cannot be drawn", print_exception=False) from None

        draw.click(answer, inputs, [note, *shown], api_name="draw", concurrency_limit=1)
    return page


def keep(sheet: np.ndarray, folder: Path) -> str:
    """The name of a new PNG below `folder` that holds a sheet, uint8 [H, W, 3].

    An array gradio would write itself, under a name that equal pictures share: again for the second answer, and for
    whoever asks for the same, in place and while another is being sent the file, who then gets a part of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=folder)) / "image.png"
    Image.fromarray(sheet).save(path)
    return str(path)


def introduction(artist: Artist) -> str:
    """A sentence on what stands beside the run, or why nothing does."""
    if artist.compares:
        return "Both sides start from the same noise."
    return f"Nothing stands beside it: {artist.run.objective} teaches no velocity that Euler steps could follow."


def headings_of(artist: Artist) -> tuple[str, str]:
    """What is drawn on the left and on the right."""
    left = {
        "euler": "Euler steps, as many as asked for",
        "jump": "Jumps, as many calls as asked for",
        "consistency": "Jumps to the end, as many calls as asked for, with new noise between them",
    }[artist.run.method]
    if artist.beside is artist.run:
        return left, f"Flow matching: {EULER_STEPS} Euler steps of the same network"
    return left, f"The run beside, of {artist.beside.objective}: {EULER_STEPS} Euler steps"


def guidance_range(run: TrainedRun) -> tuple[float, float]:
    """The guidance scales that a slider offers: those of training, and for a single one its surroundings."""
    match parse_guidance(run.guidance):
        case FixedGuidance(w):
            return min(0.5, w), max(4.0, 2 * w)
        case UniformGuidance(low, high):
            return low, high
    return 1.0, 8.0


def _check_address(host: str, port: int | None) -> None:
    """`OSError` where nothing can listen: gradio tries a hundred ports, 5 seconds each, and then blames the ports."""
    try:
        found = socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), port or 0, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(found[0][4])
    except (OSError, UnicodeError) as error:
        where = f"{host}, port {port}" if port else host
        raise OSError(f"cannot serve at {where} ({error}); give an address of this machine and a free port.") from error


def _gradio() -> ModuleType:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; the page needs: pip install 'tvmatch[demo]'") from error
    return gradio
