"""What a block keeps for its backward pass, and what it computes again, under each policy."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import randomise
from tvmatch.flow_map import FlowMap
from tvmatch.kernels import biased_gelu, short_attention
from tvmatch.kernels.head_norm import op as head_norm_op
from tvmatch.kernels.modulated_norm import op as modulated_norm_op
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.training.config import Recompute
from tvmatch.training.engine import prepare_network, prepare_objective

POLICIES = ("none", "selective", "full")
SIZE = 32
GRAPHS = 9  # block, conditioning and final layer: with gradients, with tangents, as target


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let the layers go to the operators that they go to on a GPU; their kernels run in Triton's interpreter."""

    def choose(short: bool) -> None:
        monkeypatch.setattr(short_attention, "applies", lambda qkv, heads: short)
        monkeypatch.setattr(biased_gelu, "applies", lambda h, dtype: True)
        for module in (head_norm_op, modulated_norm_op):
            monkeypatch.setattr(module, "launches_triton", lambda x: x.dtype in (torch.float32, torch.bfloat16))

    return choose


def block(recompute: Recompute, compiled: bool, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """One block of width SIZE over 16 tokens, prepared by the engine."""
    shape = DiTConfig(image_size=8, channels=2, num_classes=3, patch_size=2, hidden_size=SIZE, depth=1, num_heads=2)
    network = DiT(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    prepare_network(network, dtype, compiled, recompute)
    return network.blocks[0]


def inputs() -> list[Tensor]:
    """(x, gate, update, c) of a block, and their tangents."""
    shapes = ((2, 16, SIZE), (2, 1, SIZE), (2, 16, SIZE), (2, SIZE))
    return [torch.randn(shape).requires_grad_() for shape in shapes] + [torch.randn(shape) for shape in shapes]


def run(block: torch.nn.Module, given: list[Tensor], pair: bool) -> Tensor:
    """The sum of what a block gives, from which its backward pass can begin."""
    if pair:
        primals, tangents = block(*given[:4], tangents=given[4:])
        return sum(part.float().square().sum() for part in (*primals, *tangents))
    return sum(part.float().square().sum() for part in block(*given[:4]))


def kept(block: torch.nn.Module, given: list[Tensor], pair: bool) -> int:
    """Bytes that one call keeps for its backward pass, besides its inputs and weights."""
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(*given[:4], tangents=given[4:]) if pair else block(*given[:4])
    own = {tensor.untyped_storage().data_ptr() for tensor in (*given, *block.parameters())}
    return sum(size for place, size in found.items() if place not in own)


def gradients(block: torch.nn.Module, given: list[Tensor], pair: bool) -> list[Tensor]:
    """Of `run`, for inputs and weights that it depends on."""
    weights = [*given[:4], *block.parameters()]
    return list(torch.autograd.grad(run(block, given, pair), weights, allow_unused=True))


def step(flow: FlowMap, depth: int, recompute: Recompute) -> int:
    """Two compiled steps of a network of equal blocks; how many graphs were compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    shape = dataclasses.replace(flow.network.config, depth=depth)
    objective = TerminalVelocityMatching(FlowMap(randomise(DiT(shape))))
    prepare_objective(objective, None, compiled=True, recompute=recompute)
    for number in range(2):
        objective.seed(number)
        objective(torch.randn(4, 2, 4, 4), torch.tensor([0, 1, 2, -1])).loss.backward()
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("recompute", "depths"),
    [("none", (1, 3)), *(pytest.param(policy, (1, 2, 4), marks=pytest.mark.slow) for policy in POLICIES)],
)
def test_blocks_are_compiled_once_whatever_their_number(
    flow: FlowMap, monkeypatch: pytest.MonkeyPatch, recompute: Recompute, depths: tuple[int, ...]
) -> None:
    """Each whole (`fullgraph`), so a graph that was cut or compiled anew would be one more."""
    # "eager" would run a checkpoint as it is, which may stop inside a dual level and leave it open
    backend = "eager" if recompute == "none" else "aot_eager"
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    assert [step(flow, depth, recompute) for depth in depths] == [GRAPHS] * len(depths)


class Counting(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def backward_calls(recompute: Recompute) -> dict[str, int]:
    """How many products, attentions and GELUs the backward pass of one block computes."""
    given = inputs()
    result = run(block(recompute, compiled=False), given, pair=False)
    with Counting() as counting:
        result.backward()
    calls = counting.calls
    return {
        "products": calls["mm"] + calls["addmm"] + calls["bmm"],
        "attention": sum(n for name, n in calls.items() if "attention" in name and "backward" not in name),
        "gelu": calls["gelu"],
    }


def test_what_each_policy_computes_again() -> None:
    none, selective, full = map(backward_calls, POLICIES)
    assert none["products"] > 0
    assert (none["attention"], none["gelu"]) == (0, 0)
    assert selective == none | {"gelu": 1}  # of four products, attention and GELU, only GELU
    assert full["products"] >= none["products"] + 3  # those before the last, at least
    assert (full["attention"], full["gelu"]) == (1, 1)


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_full_recomputation_keeps_nothing_when_compiled(
    kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """PyTorch 2.11 kept what the operators inside `torch.autograd.Function`s give: XL/2 took 53.5 GiB."""
    kernels(short)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    prepared, given = block("full", True), inputs()
    plain = block("none", False)
    plain.load_state_dict(prepared.state_dict())
    assert kept(prepared, given, pair=True) == 0
    # of attention by PyTorch, on a CPU, the state of a generator that it does not use
    assert kept(prepared, given, pair=False) <= (0 if short else torch.get_rng_state().nbytes)
    for pair in (True, False):
        ours, theirs = (gradients(each, given, pair) for each in (prepared, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_selective_recomputation_keeps_less_than_all_when_compiled(
    kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels(False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    given, stream = inputs(), 2 * 16 * SIZE * 4
    for pair in (False, True):
        none, selective = (kept(block(policy, True, torch.bfloat16), given, pair) for policy in POLICIES[:2])
        assert none - selective > 3 * stream
        assert selective > 6 * stream
