"""How long a run goes on, by steps or by minutes, and its learning rate on the way."""

import time
from collections import deque

import torch

from tvmatch.training.config import TrainConfig

AHEAD = 2  # steps that the host may be ahead of a GPU: enough to keep it busy, and few against the seconds of a run


class Schedule:
    """The clock of a run starts when this is made, so that compiling counts; `spent` seconds went before (of a run that
    is continued).

    `ValueError` for a limit in minutes among several `processes`: their clocks, and with them their learning rates,
    would differ.
    """

    def __init__(self, config: TrainConfig, spent: float = 0.0, processes: int = 1) -> None:
        if config.minutes is not None and processes > 1:
            raise ValueError(f"--minutes is for one process; with {processes} give --steps.")
        self.config, self.spent, self.began = config, spent, time.monotonic()
        self.launched: deque[torch.cuda.Event] = deque()
        self.stepped = False

    def seconds(self) -> float:
        """Training time until now."""
        return self.spent + time.monotonic() - self.began

    def progress(self, step: int) -> float:
        """The share of the training that is done after `step` steps, in [0, 1]."""
        done = step / self.config.steps
        if self.config.minutes is not None:
            done = max(done, self.seconds() / (60 * self.config.minutes))
        return min(done, 1.0)

    def over(self, step: int) -> bool:
        """Whether the run is complete after `step` steps."""
        return self.progress(step) >= 1

    def expected_steps(self, step: int) -> int:
        """How many steps the run will have, if it goes on at this pace."""
        progress = self.progress(step)
        if self.config.minutes is None or step == 0:
            return self.config.steps
        return step if progress >= 1 else max(step + 1, round(step / progress))

    def learning_rate(self, step: int) -> float:
        """Of the step after `step` steps: a linear rise over `warmup_steps`, and a linear fall to zero over the last
        `decay_share` of the training."""
        config = self.config
        rise = min(1.0, (step + 1) / max(config.warmup_steps, 1))
        fall = min(1.0, (1 - self.progress(step)) / config.decay_share) if config.decay_share else 1.0
        return config.learning_rate * rise * fall

    def first_step(self, device: torch.device) -> dict[str, float]:
        """After every step: after the first the seconds until its end, for which the host waits; then nothing. They
        count from when this was made: data, network, the check of tangents and compilation, but not Python's imports
        and the meeting of processes."""
        if self.stepped:
            return {}
        self.stepped = True
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return {"seconds_until_first_step": time.monotonic() - self.began}

    def keep_pace(self, device: torch.device) -> None:
        """After every step of a run by minutes: wait for the step before the last. A host far ahead of its GPU would
        see the minutes end before their steps do."""
        if self.config.minutes is None or device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        self.launched.append(event)
        if len(self.launched) > AHEAD:
            self.launched.popleft().synchronize()
