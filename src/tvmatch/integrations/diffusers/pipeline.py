"""A trained model as a pipeline of diffusers: noise, a few calls of the transformer, and the codec's pictures."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from tvmatch.data.naming import class_index
from tvmatch.data.source import to_pictures
from tvmatch.files import write_text
from tvmatch.guidance import check_scale
from tvmatch.integrations.diffusers.codec import TVMatchTinyCodec
from tvmatch.integrations.diffusers.scheduler import TVMatchScheduler, whole_number
from tvmatch.integrations.diffusers.transformer import TVMatchTransformer, safetensors_only

Labels = int | str | Sequence[int | str] | Tensor | np.ndarray
DECODED_AT_ONCE = 16  # latents
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# what `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline="pipeline")` reads
PIPELINE_FILE = '''"""Lets plain diffusers load this folder; tvmatch must be installed."""

from tvmatch.integrations.diffusers import TVMatchPipeline

__all__ = ["TVMatchPipeline"]
'''


class TVMatchPipeline(DiffusionPipeline):
    """Draws pictures in one call of the network, or a few.

    transformer                  a `TVMatchTransformer`
    scheduler                    a `TVMatchScheduler`
    vae                          the codec of a model of latents; None for a model of pictures
    class_names                  one name a class, or none
    default_guidance_scale       w where none is asked for
    default_num_inference_steps  calls where none are asked for
    trained_guidance             how w was drawn in training: a scale, a range `1:3`, or `inverse`
    latents_mean, latents_std    of each channel of the codec's latents, which the network sees normalised
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components: ClassVar = ["vae"]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As diffusers does, all parts from safetensors only."""
        return super().from_pretrained(*args, **safetensors_only(kwargs))

    def __init__(
        self,
        transformer: TVMatchTransformer,
        scheduler: TVMatchScheduler,
        vae: AutoencoderKL | AutoencoderTiny | TVMatchTinyCodec | None = None,
        class_names: list[str] | None = None,
        default_guidance_scale: float = 1.0,
        default_num_inference_steps: int = 1,
        trained_guidance: str = "1",
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(
            class_names=list(class_names or ()),
            default_guidance_scale=default_guidance_scale,
            default_num_inference_steps=default_num_inference_steps,
            trained_guidance=trained_guidance,
            latents_mean=None if latents_mean is None else list(latents_mean),
            latents_std=None if latents_std is None else list(latents_std),
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        num_images_per_label: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        timesteps: Sequence[float] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw one picture for each class.

        class_labels          names or numbers, one or several; -1 is no class (None: no class, one picture)
        num_images_per_label  pictures of each, side by side
        num_inference_steps   calls of the network (None: the model's own); or a grid of `timesteps` from 1 down to 0
        guidance_scale        w, above 0; 1 is none (None: the model's own). It costs no second call
        generator             draws the noise: one, or one a picture
        latents               the noise itself, [B, *transformer.data_shape]
        output_type           pil; np, float [B, H, W, C] in [0, 1]; pt, float [B, C, H, W] in [0, 1]; or latent, what
                              the network draws
        Raises `ValueError`, which names the value and what would be right, before the first call of the network.
        """
        label = self._labels(class_labels, num_images_per_label)
        w = self._guidance(guidance_scale, label)
        self._check_output(output_type)
        steps = num_inference_steps
        if steps is None and timesteps is None:
            steps = self.config.default_num_inference_steps
        device = self._execution_device
        self.scheduler.set_timesteps(steps, device, timesteps)
        x = self._noise(len(label), generator, latents, device)
        conditions = {
            "class_labels": label.to(device),
            "guidance_scale": torch.full((len(label),), w, device=device),
        }
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress:
            for t, end in zip(self.scheduler.timesteps, self.scheduler.timestep_ends, strict=True):
                output = self.transformer(
                    x.to(self.transformer.dtype), t.expand(len(x)), end.expand(len(x)), **conditions
                ).sample
                x = self.scheduler.step(output.float(), t, x, generator=generator).prev_sample
                progress.update()
        images = x if output_type == "latent" else self._finish(self._decode(x), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers does, with the file beside it that lets plain `DiffusionPipeline` load the folder."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_text(Path(save_directory) / "pipeline.py", PIPELINE_FILE)

    def _labels(self, asked: Labels | None, repeated: int) -> Tensor:
        """int64 [B] of names and numbers."""
        repeated = whole_number("num_images_per_label", repeated)
        if repeated < 1:
            raise ValueError(f"num_images_per_label must be a whole number, at least 1; got {repeated!r}.")
        if isinstance(asked, Tensor | np.ndarray):
            asked = asked.tolist()  # of no dimensions: the number itself
        if asked is None:
            asked = -1
        each = list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
        if not each:
            raise ValueError("class_labels is empty; name one class or more, or -1 for none.")
        return torch.tensor([self._label(one) for one in each]).repeat_interleave(repeated)

    def _label(self, asked: Any) -> int:
        count = self.transformer.num_classes
        if isinstance(asked, str):
            return class_index(asked, tuple(self.config.class_names), count)
        if isinstance(asked, bool) or not isinstance(asked, int | np.integer):
            raise ValueError(f"class_labels are names or whole numbers, got {asked!r}.")
        if not -1 <= asked < count:
            known = f"0 to {count - 1}, or -1 for no class" if count else "-1: this model was trained without classes"
            raise ValueError(f"class_labels must be {known}; got {asked}.")
        return int(asked)

    def _guidance(self, asked: float | None, label: Tensor) -> float:
        w, warning = self.config.default_guidance_scale, None
        if asked is not None:
            if isinstance(asked, bool) or not isinstance(asked, int | float | np.number):
                raise ValueError(f"guidance_scale must be a number, got {asked!r}.")
            w = float(asked)
            warning = check_scale(w, self.config.trained_guidance, self.transformer.num_classes)
        if w != 1 and bool((label < 0).any()):  # in training, such samples have w = 1 whatever was drawn
            warning = f"w={w:g} was not seen in training without a class; take guidance_scale=1 there."
        if warning is not None:
            warnings.warn(warning, stacklevel=3)
        return w

    def _check_output(self, output_type: str) -> None:
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be {', '.join(OUTPUT_TYPES)}; got {output_type!r}.")
        channels = self.transformer.data_shape[0]
        if output_type != "latent" and self.vae is None and channels not in (1, 3):
            raise ValueError(
                f"this model draws latents of {channels} channels and has no codec to make pictures of them: take "
                "output_type='latent', or load it with vae=."
            )

    def _noise(self, count: int, generator: Any, latents: Tensor | None, device: torch.device) -> Tensor:
        shape = (count, *self.transformer.data_shape)
        each = generator if isinstance(generator, list) else [] if generator is None else [generator]
        if not all(isinstance(one, torch.Generator) for one in each):
            raise ValueError(
                f"generator must be a torch.Generator (torch.Generator().manual_seed(0)), got {generator!r}."
            )
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"give one generator, or one a picture: {count}; got {len(generator)}.")
        if latents is not None:
            if not isinstance(latents, Tensor):
                raise ValueError(f"latents must be a tensor of noise {list(shape)}, got a {type(latents).__name__}.")
            if tuple(latents.shape) != shape or not latents.is_floating_point():
                raise ValueError(
                    f"latents must be floating-point noise {list(shape)}, got {latents.dtype} {list(latents.shape)}."
                )
            return latents.to(device, torch.float32)
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

    def _decode(self, x: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in about [-1, 1] of what the network draws."""
        if self.config.latents_mean is not None:
            mean, std = (
                x.new_tensor(values).reshape(-1, 1, 1) for values in (self.config.latents_mean, self.config.latents_std)
            )
            x = x * std + mean
        if self.vae is None:
            return x
        return torch.cat([self.vae.decode(part.to(self.vae.dtype)).sample.float() for part in x.split(DECODED_AT_ONCE)])

    @staticmethod
    def _finish(x: Tensor, output_type: str) -> Any:
        if output_type == "pil":
            pictures = to_pictures(x).cpu().numpy()
            return [Image.fromarray(one if one.shape[-1] == 3 else one[..., 0]) for one in pictures]
        scaled = (x / 2 + 0.5).clamp(0, 1)
        return scaled if output_type == "pt" else scaled.cpu().permute(0, 2, 3, 1).numpy()
