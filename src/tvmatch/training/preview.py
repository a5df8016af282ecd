"""The picture that a run draws of itself now and then."""

import torch
from PIL import Image

from tvmatch.data.source import to_pictures
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance, parse_guidance
from tvmatch.pictures import captioned, enlarge, save_png, tile
from tvmatch.sampling import euler, sample, seeded_noise
from tvmatch.training.config import TrainConfig

CLASSES, COLUMNS = 10, 6


def default_w(guidance: str) -> float:
    """The guidance scale to sample with where none is asked for: the fixed one, else 1.5."""
    scheme = parse_guidance(guidance)
    return scheme.w if isinstance(scheme, FixedGuidance) else 1.5


def draw_preview(flow: FlowMap, config: TrainConfig, class_names: tuple[str, ...], step: int) -> Image.Image:
    """Samples of the first classes in 1, 2 and 4 network calls (Euler steps 4 and 32 for flow matching), saved as
    RUN/samples/step_XXXXXXXX.png; the noise is the same in every picture."""
    classes = list(range(min(CLASSES, flow.network.num_classes))) or [-1] * 4
    label = torch.tensor(classes).repeat_interleave(COLUMNS)
    noise = seeded_noise(config.seed, range(len(label)), flow.network.data_shape)
    noise = noise.to(next(flow.parameters()).device)
    draw, counts = (euler, (4, 32)) if config.objective == "flow-matching" else (sample, (1, 2, 4))
    blocks = []
    for steps in counts:
        pictures = to_pictures(draw(flow, noise, label, default_w(config.guidance), steps)).cpu().numpy()
        caption = f"{steps} call{'s' if steps > 1 else ''}"
        blocks.append((caption, enlarge(tile(pictures, COLUMNS), 32, pictures.shape[1])))
    names = [class_names[c] if 0 <= c < len(class_names) else str(c) for c in classes if c >= 0]
    picture = captioned(blocks, names)
    save_png(picture, config.run / "samples" / f"step_{step:08d}.png")
    return picture
