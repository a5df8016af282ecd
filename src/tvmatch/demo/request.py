"""What a visitor of the page asks for, checked: the values come over the network and may be anything."""

from dataclasses import dataclass
from typing import Any

from tvmatch.training.trained import TrainedRun

EACH, NO_CLASS = "each in turn", "no class"
MOST_CALLS = 128
MOST_PICTURES = 64
LARGEST_SEED = 2**53 - 1  # above it a browser rounds whole numbers without a word


@dataclass(frozen=True)
class DrawRequest:
    """Pictures to draw.

    labels  class of each picture, -1 for none
    calls   network calls a picture (NFE)
    w       guidance scale, above 0; 1 is none
    seed    of the noise; picture i depends on the seed and i only
    """

    labels: tuple[int, ...]
    calls: int
    w: float
    seed: int


def read_request(run: TrainedRun, name: Any, calls: Any, w: Any, seed: Any, pictures: Any) -> DrawRequest:
    """The request in values of any type; `ValueError` names the first that will not do, and what would."""
    count = _whole("the number of pictures", pictures, 1, MOST_PICTURES)
    if isinstance(w, bool) or not isinstance(w, int | float):
        raise ValueError(f"the guidance scale w must be a number, got {_shown(w)}.")
    try:
        w = float(w)
    except OverflowError:  # a whole number of hundreds of digits
        raise ValueError(f"the guidance scale w must be a finite number, got {_shown(w)}.") from None
    run.check_w(w)
    classes = _classes(run, name)
    return DrawRequest(
        labels=tuple(classes[i % len(classes)] for i in range(count)),
        calls=_whole("the number of calls", calls, 1, MOST_CALLS),
        w=w,
        seed=_whole("the seed", seed, 0, LARGEST_SEED),
    )


def class_choices(run: TrainedRun) -> list[str]:
    """What the page offers as class: names, or numbers where classes have no names."""
    if run.flow.network.num_classes == 0:
        return [NO_CLASS]
    return [EACH, *(run.class_names or map(str, range(run.flow.network.num_classes)))]


def _classes(run: TrainedRun, name: Any) -> list[int]:
    if run.flow.network.num_classes == 0:
        if name in (None, NO_CLASS):
            return [-1]
    elif name == EACH and EACH not in run.class_names:
        return list(range(run.flow.network.num_classes))
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"the class must be a name or a number, got {_shown(name)}.")
    if len(str(name)) > 200:
        raise ValueError("the class is no name of this run.")
    return [run.class_index(str(name))]


def _whole(what: str, value: Any, smallest: int, largest: int) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or value != value or value in (float("inf"), -float("inf")) or value != int(value):
        raise ValueError(f"{what} must be a whole number from {smallest} to {largest}, got {_shown(value)}.")
    if not smallest <= value <= largest:
        raise ValueError(f"{what} must be {smallest} to {largest}, got {int(value)}.")
    return int(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
