"""No step makes the host wait for the device: nothing that a step computes is read by Python or decides a shape.

On a CPU nobody waits, so here the operators are watched that would wait on a GPU, around the loop's own step. On a GPU
PyTorch itself says when the host waits (`test_gpu.py`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.support import steps_of_a_run, tiny_config
from tvmatch import checks
from tvmatch.training import loop
from tvmatch.training.config import ObjectiveName

# a number for Python; a shape that depends on numbers
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "masked_select", "bincount"}
WAITING |= {"_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
READING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.__bool__}
READING |= {torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.__index__}


class Waited(AssertionError):
    """An operator for which a host would wait."""


class NoWaitingOperator(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or masks:
            raise Waited(f"{func} in a step")
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READING:
            raise Waited(f"{func} in a step")
        return func(*args, **(kwargs or {}))


def later_step(folder: Path, **changes: Any) -> None:
    """The first steps look whether tangents arrive, until they have; the next is as all others."""
    with steps_of_a_run(tiny_config(folder / "run", batch_size=8, steps=9, **changes)) as (run, images, label):
        for _ in range(4):
            run.step(images, label)
        with NoWaitingOperator(), NoReading():
            run.step(images, label)
        assert run.state.step == 5


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There `look` reads nothing, and checks of values are asserts of the device."""
    monkeypatch.setattr(loop._Run, "look", lambda self: None)
    monkeypatch.setattr(checks, "_require", lambda condition, message, culprit, error=None: condition.all())


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_no_step_waits(tmp_path: Path, objective: ObjectiveName) -> None:
    later_step(tmp_path, objective=objective)


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2},
        {"terminal_every": 2},
        {"recompute": "full"},
        {"precision": "bfloat16"},
        {"optimizer": "muon", "weight_decay": 0.1},
    ],
)
def test_no_step_waits_with(tmp_path: Path, changes: dict[str, Any]) -> None:
    later_step(tmp_path, **changes)


@pytest.mark.parametrize(
    "look",
    [float, bool, torch.Tensor.tolist, torch.nonzero, lambda norm: norm.reshape(1)[norm.reshape(1) > 0]],
    ids=["float", "bool", "tolist", "nonzero", "mask"],
)
def test_a_look_at_the_norm_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[torch.Tensor], Any]
) -> None:
    clip = torch.nn.utils.clip_grad_norm_

    def looking(*arguments: Any, **keywords: Any) -> torch.Tensor:
        norm = clip(*arguments, **keywords)
        look(norm)
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", looking)
    with pytest.raises(Waited):
        later_step(tmp_path)
