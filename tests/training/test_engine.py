"""The engine changes how a step runs, not what it computes."""

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from tests.test_flow_map import GaussianNetwork
from tests.training.support import tiny_config, tiny_network
from tvmatch.flow_map import FlowMap
from tvmatch.objectives import TerminalVelocityMatching
from tvmatch.training.config import Precision
from tvmatch.training.engine import (
    compute_dtype,
    outer_products,
    prepare_network,
    prepare_objective,
    should_compile,
    start_compilers,
)
from tvmatch.training.loop import train


@pytest.fixture
def attention_of_this_version() -> Iterator[None]:
    """PyTorch 2.11, compiling for a CPU, takes the statistics of float64 attention for float32, and raises: there the
    formula of attention itself is compiled. Its cache of graphs does not tell the two apart."""
    if not torch.__version__.startswith("2.11."):
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), torch._inductor.config.patch(force_disable_caches=True):
        yield


def step(flow: FlowMap, **options: object) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one step of a copy of `flow` that the engine prepared."""
    objective = TerminalVelocityMatching(copy.deepcopy(flow))
    prepare_objective(objective, **{"dtype": None, "compiled": False, "recompute": "none"} | options)
    objective.seed(1)
    x0 = torch.linspace(-1, 1, 4 * 32, dtype=torch.float64).view(4, 2, 4, 4)
    loss = objective(x0, torch.tensor([0, 1, 2, -1])).loss
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in objective.flow.parameters()])


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_gives_the_same_loss_and_gradient(flow: FlowMap, recompute: str) -> None:
    torch.testing.assert_close(step(flow, recompute=recompute), step(flow), rtol=1e-12, atol=1e-14)


def test_full_recomputation_runs_each_block_again(flow: FlowMap) -> None:
    calls = []
    flow = copy.deepcopy(flow)
    prepare_network(flow.network, None, compiled=False, recompute="full")
    flow.network.blocks[0].attention.qkv.register_forward_hook(lambda *a: calls.append(1))
    x, ones = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    flow.velocity(x, ones, torch.zeros(2, dtype=torch.int64), ones).sum().backward()
    assert len(calls) == 2


def test_sixteen_bits_agree_to_sixteen_bits(flow: FlowMap) -> None:
    exact, rounded = step(flow), step(flow, dtype=torch.bfloat16)
    assert 0 < float((exact[1] - rounded[1]).norm() / exact[1].norm()) < 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("attention_of_this_version")
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_compiled_steps_agree(flow: FlowMap, recompute: str) -> None:
    torch.testing.assert_close(step(flow, compiled=True, recompute=recompute), step(flow), rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_compiles_each_part_once_for_each_way_of_calling_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Block, conditioning and final layer with tangents, with gradients, and as target: what a run waits for at its
    start. The check of tangents is among its calls."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with tiny_network():
        train(tiny_config(tmp_path / "run", compile="on", steps=2, terminal_every=every), show=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 9


@pytest.mark.slow
def test_compilers_are_started_for_a_gpu_alone() -> None:
    pytest.importorskip("triton")
    from torch._inductor.async_compile import AsyncCompile

    start_compilers(torch.device("cpu"))
    assert AsyncCompile.process_pool.cache_info().currsize == 0
    start_compilers(torch.device("cuda"))
    assert AsyncCompile.process_pool.cache_info().currsize == 1
    AsyncCompile.wait_pool_ready()
    assert AsyncCompile.use_process_pool()


def test_choices_by_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype("auto", cpu) is None
    assert compute_dtype("auto", gpu) == compute_dtype("bfloat16", cpu) == torch.bfloat16
    assert compute_dtype("float32", gpu) is None
    assert should_compile("auto", gpu)
    assert not should_compile("auto", cpu)
    assert should_compile("on", cpu)
    assert not should_compile("off", gpu)


@pytest.mark.parametrize(
    ("precision", "device", "inside"),
    [("auto", "cuda", "high"), ("bfloat16", "cpu", "highest"), ("float32", "cuda", "highest")],
)
def test_tf32_is_for_sixteen_bit_runs_on_a_gpu_and_put_back(precision: Precision, device: str, inside: str) -> None:
    seen = []

    def fails() -> None:
        with outer_products(precision, torch.device(device)):
            seen.append(torch.get_float32_matmul_precision())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [*seen, torch.get_float32_matmul_precision()] == [inside, "highest"]


def test_a_network_without_equal_blocks_is_refused_what_it_cannot_do() -> None:
    network = GaussianNetwork(0.5)
    prepare_network(network, None, compiled=False, recompute="none")
    with pytest.raises(ValueError, match="GaussianNetwork has no equal blocks"):
        prepare_network(network, None, compiled=True, recompute="none")


@pytest.mark.slow
@pytest.mark.usefixtures("attention_of_this_version")
def test_compiled_blocks_are_not_cut_at_the_buckets_of_ddp(flow: FlowMap) -> None:
    """Dynamo cuts graphs where a bucket of gradients ends, and so through a dual level, unless told not to."""
    objective = TerminalVelocityMatching(copy.deepcopy(flow))
    prepare_objective(objective, None, compiled=True, recompute="none")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = DistributedDataParallel(objective, bucket_cap_mb=0.002)
        objective.seed(1)
        loss = module(torch.linspace(-1, 1, 4 * 32, dtype=torch.float64).view(4, 2, 4, 4), torch.tensor([0, 1, 2, -1]))
        loss.loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in objective.flow.parameters()])
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close((loss.loss.detach(), gradient), step(flow), rtol=1e-8, atol=1e-9)
