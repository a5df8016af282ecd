"""Everything a training run can be told, in one frozen dataclass; kept as `config.yaml` in the run folder."""

import dataclasses
import difflib
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tvmatch.data.decoding import Crop
from tvmatch.guidance import parse_guidance
from tvmatch.networks.layers import Norm
from tvmatch.networks.modulated import Initialisation

ObjectiveName = Literal[
    "terminal-velocity",
    "flow-matching",
    "mean-flow",
    "improved-mean-flow",
    "split-mean-flow",
    "shortcut",
    "alpha-flow",
    "lagrangian",
    "modular-mean-flow",
    "consistency-training",
    "inductive-moment-matching",
]
Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "on", "off"]
Graphs = Literal["auto", "on", "off"]
Recompute = Literal["none", "selective", "full"]
Strategy = Literal["auto", "single", "ddp", "fsdp"]
FsdpGather = Literal["auto", "step", "use"]
JumpName = Literal["auto", "truncated-gap", "near", "wide", "far", "to-data", "logit-normal", "uniform"]
OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The comment behind each field is its help text."""

    run: Path = Path("runs/digits")  # folder of the run; the same command continues an unfinished run
    # digits; an .npz file (images uint8 NHWC, labels); a folder with a sub-folder a class; a folder of latents; one
    # or more .tar, .parquet or .arrow files; or hf:NAME (see docs/your_own_pictures.md)
    data: str = "digits"
    image_size: int | None = None  # pixels a side; pictures are resized and cropped to it (None: as they are)
    crop: Crop = "centre"  # of pictures that are not square: the centre, or a random square each time
    flip: bool = False  # mirror pictures at random
    strict: bool = False  # end with an error at the first unreadable picture instead of skipping it

    network: str = "DiT-Digits/4"  # see `tvmatch presets`
    norm: Norm = "rms"  # of tokens; layer: LayerNorm in its place (ablation), as in DiT
    qk_norm: bool = True  # normalise queries and keys
    modulation_norm: bool = True  # normalise what modulates the blocks
    initialisation: Initialisation = "spectral"  # of weights: spectral norm 1; xavier: as in DiT (ablation)
    objective: ObjectiveName = "terminal-velocity"  # what is learned (docs/methods.md)
    guidance: str = "1.5"  # w: a scale (2), a range drawn uniformly (1:3), or inverse (1/w uniform in (0, 1))
    scaled: bool = True  # scaled parameterisation: the network's output is multiplied by w
    weighted: bool = True  # weight each sample's loss by 1/w^2
    detach_jvp: bool = False  # ablation: stop the gradient through the derivative of the network
    jumps: JumpName = "auto"  # how the two ends (t, s) of a jump are drawn (auto: as in the objective's paper)
    boundary_at_end: bool = False  # ablation: boundary term at r = s, the end of the jump, not at a time r of its own
    terminal_every: int = 1  # terminal term of every n-th sample only, for cheaper steps (1: of all, as in the paper)
    label_dropout: float = 0.1  # share of samples whose class is hidden

    steps: int = 500  # training steps in all
    minutes: float | None = None  # end after so many minutes, compiling included, or after --steps if that is sooner
    initial: str | None = None  # start from the (slowest) averaged weights of this trained run of the same network
    batch_size: int = 128  # samples a step, over all processes and micro-steps
    accumulate: int = 1  # micro-steps a step: gradients of so many smaller batches are added up, to save memory
    # adamw; muon: the matrices of the blocks by Muon, everything else by AdamW (docs/engine.md)
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3  # of the optimiser, after the warm-up
    warmup_steps: int = 50  # the learning rate rises linearly over the first steps
    decay_share: float = 0.0  # it falls linearly to zero over the last share of the training (0: constant)
    beta1: float = 0.9  # of AdamW: decay of the mean of gradients
    beta2: float = 0.95  # of AdamW: decay of the mean of their squares
    weight_decay: float = 0.0  # of the optimiser, decoupled from the gradient
    clip_gradient: float = 1.0  # largest gradient norm (inf: no clipping)
    max_skipped: int = 10  # steps in a row that are skipped, their loss or gradient not finite, before the run stops
    target_ema: float = 0.99  # decay of the target network of the loss
    evaluation_ema: tuple[float, ...] = (0.99, 0.999)  # decays of the weights that are kept for sampling
    seed: int = 0  # of the first weights, the order of the data and every draw

    log_every: int = 20  # steps between lines of metrics.jsonl
    sample_every: int = 300  # steps between pictures in RUN/samples (0: none)
    checkpoint_every: int = 300  # steps between checkpoints
    keep_checkpoints: int = 2  # the last so many are kept
    device: str = "auto"  # cpu, cuda, or auto: a GPU if there is one
    precision: Precision = "auto"  # of the blocks; weights stay float32 (auto: bfloat16 on a GPU)
    compile: Compile = "auto"  # compile the blocks (auto: on a GPU)
    graphs: Graphs = "auto"  # record a step as a CUDA graph and replay it (auto: on one GPU; on: on several too)
    recompute: Recompute = "none"  # activations to compute again in the backward pass, to save memory
    strategy: Strategy = "auto"  # over the processes that torchrun started (auto: ddp if there are several)
    # with --strategy fsdp: gather the trained weights once a step, or at each use, for less memory (auto: step)
    fsdp_gather: FsdpGather = "auto"

    def __post_init__(self) -> None:
        _check_types(self)
        parse_guidance(self.guidance)
        counts = "steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints"
        for name in (*counts, "terminal_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("sample_every", "warmup_steps", "weight_decay", "max_skipped", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "clip_gradient"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("learning_rate", "weight_decay"):
            _require(math.isfinite(getattr(self, name)), name, getattr(self, name), "finite")
        _require(self.seed < 2**63, "seed", self.seed, "below 2^63")
        for name in ("beta1", "beta2", "target_ema"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        for name in ("label_dropout", "decay_share"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        if self.minutes is not None:
            _require(0 < self.minutes < math.inf, "minutes", self.minutes, "above 0")
        if self.fsdp_gather != "auto" and self.strategy != "fsdp":
            raise ValueError(
                f"fsdp_gather={self.fsdp_gather} says when --strategy fsdp gathers weights, and strategy is "
                f"{self.strategy}; leave it out, or give --strategy fsdp."
            )
        if self.optimizer == "muon" and self.strategy == "fsdp":
            raise ValueError(
                "optimizer=muon needs whole matrices, and --strategy fsdp spreads them over processes; "
                "give --strategy ddp, or --optimizer adamw."
            )
        _require(len(self.evaluation_ema) > 0, "evaluation_ema", self.evaluation_ema, "one decay or more")
        for decay in self.evaluation_ema:
            _require(0 <= decay < 1, "evaluation_ema", decay, "in [0, 1)")
        _require(
            len(set(self.evaluation_ema)) == len(self.evaluation_ema),
            "evaluation_ema",
            self.evaluation_ema,
            "without repetition",
        )
        if self.image_size is not None:
            _require(self.image_size >= 1, "image_size", self.image_size, "at least 1")


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value}.")


def _check_types(config: TrainConfig) -> None:
    """Raise `ValueError` for a field of the wrong type: a YAML file or a Python caller may put anything there.
    Whole numbers are accepted, and kept as floats, where a float is asked for."""
    for name, hint in typing.get_type_hints(TrainConfig).items():
        value = getattr(config, name)
        if hint in (float, float | None) and _is_number(value):
            object.__setattr__(config, name, float(value))
        elif name == "evaluation_ema" and isinstance(value, tuple) and all(map(_is_number, value)):
            object.__setattr__(config, name, tuple(map(float, value)))
        elif name == "evaluation_ema":
            raise ValueError(f"evaluation_ema must be a list of numbers, got {value!r}.")
        elif typing.get_origin(hint) is Literal:
            _require(value in typing.get_args(hint), name, repr(value), " or ".join(typing.get_args(hint)))
        elif hint is float or (hint == float | None and value is not None):
            # YAML 1.1, which PyYAML reads, takes 1e-3 for text
            example = " (in YAML write 1.0e-3, with the point)" if isinstance(value, str) else ""
            raise ValueError(f"{name} must be a number{example}, got {value!r}.")
        elif not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
            raise ValueError(f"{name} must be {KINDS[hint]}, got {value!r}.")


KINDS = {
    int: "a whole number",
    int | None: "a whole number or null",
    bool: "true or false",
    str: "text (in YAML put it in quotes)",
    str | None: "text or null",
    Path: "a path",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def to_yaml(config: TrainConfig) -> str:
    """The configuration as YAML text."""
    values = dataclasses.asdict(config)
    values["run"] = str(config.run)
    values["evaluation_ema"] = list(config.evaluation_ema)
    return yaml.safe_dump(values, sort_keys=False)


def from_yaml(text: str, source: str) -> TrainConfig:
    """The configuration in YAML text; `ValueError` names `source` and the first unknown or ill-typed key."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} holds no configuration.")
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            raise ValueError(f"{source}: unknown key {key!r}" + (f"; did you mean {near[0]}?" if near else "."))
    if isinstance(values.get("run"), str):
        values["run"] = Path(values["run"])
    if isinstance(values.get("evaluation_ema"), list):
        values["evaluation_ema"] = tuple(values["evaluation_ema"])
    try:
        return TrainConfig(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
