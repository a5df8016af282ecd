"""The picture that a run draws of itself now and then."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance, UniformGuidance, parse_guidance
from tvmatch.pictures import captioned, enlarge, tile
from tvmatch.sampling import draw, method_of
from tvmatch.training.config import TrainConfig

CLASSES, COLUMNS = 10, 6


def default_w(guidance: str, num_classes: int) -> float:
    """The guidance scale to sample with where none is asked for: the fixed one, else the nearest to 1.5 in the range.
    Without classes it is 1, the only one that such a network sees in training."""
    if num_classes == 0:
        return 1.0
    match parse_guidance(guidance):
        case FixedGuidance(w):
            return w
        case UniformGuidance(low, high):
            return min(max(1.5, low), high)
    return 1.5


def draw_preview(
    flow: FlowMap,
    config: TrainConfig,
    class_names: tuple[str, ...],
    to_pictures: Callable[[Tensor], np.ndarray],
) -> Image.Image:
    """Samples of the first classes in 1, 2 and 4 network calls (Euler steps 4 and 32 for flow matching); the noise is
    the same in every picture. `to_pictures` makes uint8 [N, H, W, C] of what the network draws."""
    classes = list(range(min(CLASSES, flow.network.num_classes))) or [-1] * 4
    label = torch.tensor(classes).repeat_interleave(COLUMNS)
    method = method_of(config.objective)
    counts = (4, 32) if method == "euler" else (1, 2, 4)
    w = default_w(config.guidance, flow.network.num_classes)
    blocks = []
    for steps in counts:
        pictures = to_pictures(draw(flow, label, w, steps, seed=config.seed, method=method))
        caption = f"{steps} call{'s' if steps > 1 else ''}"
        blocks.append((caption, enlarge(tile(pictures, COLUMNS), 32, pictures.shape[1])))
    names = [class_names[c] if 0 <= c < len(class_names) else str(c) for c in classes if c >= 0]
    return captioned(blocks, names)
