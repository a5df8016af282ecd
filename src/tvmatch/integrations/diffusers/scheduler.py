"""The sampler of flow maps as a scheduler of diffusers: a few jumps from noise, t = 1, down to data, t = 0."""

import operator
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, SchedulerMixin  # diffusers looks for SchedulerMixin here when it loads the class
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from tvmatch.interpolant import interpolate
from tvmatch.times import check_grid, uniform_grid


def whole_number(name: str, value: Any) -> int:
    """A whole number of any library (numpy's count too) as `int`; `ValueError` names anything else."""
    try:
        if isinstance(value, bool):  # an integer to Python
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, at least 1; got {value!r}.") from None


class TVMatchScheduler(SchedulerMixin, ConfigMixin):
    """x <- x + (s - t) v, with v the mean velocity from t down to s: one call of the network a step, guided or not.

    method  jump         v is asked for between t and the next time s
            euler        v is asked for at t: for models that have learned a velocity only
            consistency  v is asked for between t and 0, and new noise leads from there back to s: for models that have
                         learned jumps to 0 only
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, method: Literal["jump", "euler", "consistency"] = "jump") -> None:
        if method not in ("jump", "euler", "consistency"):
            raise ValueError(f"method must be jump, euler or consistency, got {method!r}.")
        self.set_timesteps(1)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """`num_inference_steps` equal steps, or a grid of your own `timesteps` from 1 down to 0, both ends included.

        Afterwards `timesteps` [N], float32, holds the time at which each step starts, and `timestep_ends` [N] the time
        with which the network is to be asked.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give either num_inference_steps or timesteps.")
        if timesteps is not None:
            try:
                given = list(timesteps)
            except TypeError:  # one number, perhaps meant as their count
                raise ValueError(f"timesteps are times from 1 down to 0, got {timesteps!r}.") from None
            grid = check_grid(given)
        else:
            grid = uniform_grid(whole_number("num_inference_steps", num_inference_steps))
        times = torch.tensor(grid, dtype=torch.float32)
        self.num_inference_steps = len(grid) - 1
        self.starts, self.next_times = times[:-1], times[1:]  # on the CPU, to be looked up
        asked = {"jump": self.next_times, "euler": self.starts, "consistency": torch.zeros_like(self.starts)}
        self.timesteps, self.timestep_ends = self.starts.to(device), asked[self.config.method].to(device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample itself: networks here see x_t as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From `sample` at `timestep`, one of `timesteps`, to the next time. `generator` draws the noise that
        `consistency` puts back; the others draw none."""
        t = torch.as_tensor(timestep, dtype=torch.float32).cpu()
        found = (self.starts == t).nonzero()
        if t.dim() or len(found) != 1:
            raise ValueError(f"timestep must be one of {self.starts.tolist()}, got {t.tolist()}.")
        s = self.next_times[int(found)]
        if self.config.method != "consistency":
            moved = sample + float(s - t) * model_output
        else:
            moved = sample - float(t) * model_output
            if s > 0:
                noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
                moved = interpolate(moved, noise, s.expand(len(sample)).to(sample))
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = (1 - t) x_0 + t e."""
        return interpolate(original_samples, noise, timesteps.to(original_samples))
