"""From a trained run to the folder of a pipeline, compared with the run before it gets its name."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging

from tvmatch.data.codecs import Codec
from tvmatch.data.codecs.from_diffusers import DiffusersCodec
from tvmatch.data.codecs.tiny import TinyCodec
from tvmatch.files import new_folder, sync_folder, write_text
from tvmatch.integrations.diffusers.card import CardFacts, model_card
from tvmatch.integrations.diffusers.codec import TVMatchTinyCodec
from tvmatch.integrations.diffusers.pipeline import TVMatchPipeline
from tvmatch.integrations.diffusers.scheduler import TVMatchScheduler
from tvmatch.integrations.diffusers.transformer import TVMatchTransformer
from tvmatch.pictures import enlarge, save_png, tile
from tvmatch.sampling import METHODS, seeded_noise
from tvmatch.training.header import network_to_header
from tvmatch.training.safetensors_file import disk_errors
from tvmatch.training.trained import TrainedRun

PICTURE = "samples.png"
SAMPLES = 20  # in the picture of the card
TOLERANCE = 1e-5  # of a sample, relative to the run's own: the same numbers are multiplied in another order


@dataclass(frozen=True)
class DiffusersReport:
    """What was written: bytes in all, and the relative error of a sample against the run's own."""

    size: int
    error: float


def build_pipeline(trained: TrainedRun, codec: Codec | None) -> TVMatchPipeline:
    """The pipeline of a trained run, on the CPU; `codec` is that of its latents."""
    flow = trained.flow.cpu()
    if len(flow.network.data_shape) != 3:
        raise ValueError("a network for points draws no pictures, so it cannot be exported to diffusers.")
    transformer = TVMatchTransformer(network_to_header(flow.network.config), flow.scaled)
    transformer.flow.load_state_dict(flow.state_dict())
    space = trained.latent_space
    pipeline = TVMatchPipeline(
        transformer.requires_grad_(False).eval(),
        TVMatchScheduler(trained.method),
        vae_of(codec),
        class_names=list(trained.class_names),
        default_guidance_scale=trained.w,
        default_num_inference_steps=trained.nfe,
        trained_guidance=trained.guidance,
        latents_mean=None if space is None else list(space.mean),
        latents_std=None if space is None else list(space.deviation),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def vae_of(codec: Codec | None) -> Any:
    """A codec as a part of a pipeline; None for pictures."""
    match codec:
        case DiffusersCodec():
            return codec.network
        case TinyCodec():
            return TVMatchTinyCodec.of(codec)
    return None


def export_diffusers(trained: TrainedRun, out: Path, facts: CardFacts, codec: str | None = None) -> DiffusersReport:
    """Write the new folder `out`: a pipeline, `README.md` (its card) and `samples.png`.

    codec  where the codec of a model of latents lies now (None: where it lay in training)

    Raises `ValueError` for what cannot be exported, or if what was written gives other samples than the run; then there
    is no folder. `OSError` if the disk refuses.
    """
    opened = None if trained.latent_space is None else trained.latent_space.open_codec(codec)
    pipeline = build_pipeline(trained, opened)
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as folder:
        with _quiet():
            with disk_errors():
                pipeline.save_pretrained(folder)
            error = compare(folder, pipeline, trained)
        mode = (folder / "model_index.json").stat().st_mode  # what this user's files are given
        for path in folder.rglob("*.safetensors"):  # which are private otherwise
            path.chmod(mode)
        picture = _draw(pipeline, trained, folder / PICTURE)
        write_text(folder / "README.md", model_card(trained, facts, _codec_name(opened), picture))
        if pipeline.vae is not None:
            for licence in sorted(Path(opened.spec).glob("LICEN[CS]E*")):
                shutil.copy(licence, folder / "vae")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    sync_folder(out.parent)
    return DiffusersReport(size, error)


def compare(folder: Path, pipeline: TVMatchPipeline, trained: TrainedRun) -> float:
    """Load the folder again: every weight must be the same to the bit. Returns the relative error of samples against
    those of `tvmatch sample`; `ValueError` if it is above TOLERANCE."""
    again = TVMatchPipeline.from_pretrained(folder)
    for part in ("transformer", "vae"):
        before, after = (getattr(one, part) for one in (pipeline, again))
        if before is None and after is None:
            continue
        before, after = before.state_dict(), after.state_dict()
        if before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before):
            raise ValueError(f"the weights in {part}/ came back otherwise than they were written; nothing is kept.")
    again.set_progress_bar_config(disable=True)
    flow, count = trained.flow, 3
    steps = 1 if trained.method == "consistency" else 2  # between its steps there is new noise
    noise = seeded_noise(0, range(count), flow.network.data_shape)
    label = [number % flow.network.num_classes if flow.network.num_classes else -1 for number in range(count)]
    ours = again(label, 1, steps, latents=noise, output_type="latent").images
    theirs = METHODS[trained.method](flow, noise, torch.tensor(label), trained.w, steps)
    error = float((ours - theirs).norm() / theirs.norm())
    if not error <= TOLERANCE:  # NaN too
        raise ValueError(f"the pipeline's samples differ from the run's by {error:.2g}, relative; nothing is kept.")
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and the notes of diffusers."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _codec_name(codec: Codec | None) -> str | None:
    """As a card may say it: of a folder the last part, as the rest is this machine's business."""
    if codec is None or vae_of(codec) is None:
        return None
    return Path(codec.spec).name if Path(codec.spec).is_dir() else codec.spec


def _draw(pipeline: TVMatchPipeline, trained: TrainedRun, path: Path) -> str | None:
    """A sheet of samples, in the model's own number of calls, and its name; None for latents without a codec."""
    if pipeline.vae is None and trained.flow.network.data_shape[0] not in (1, 3):
        return None
    classes = list(range(min(trained.flow.network.num_classes, SAMPLES))) or [-1]
    labels = [classes[number % len(classes)] for number in range(SAMPLES)]
    noise = seeded_noise(0, range(SAMPLES), trained.flow.network.data_shape)
    pictures = np.stack([np.atleast_3d(np.asarray(one)) for one in pipeline(labels, latents=noise).images])
    save_png(enlarge(tile(pictures, 10), 48, pictures.shape[1]), path)
    return path.name
