import math

import pytest
import torch
from torch import nn

from tests.conftest import randomise
from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.training import attention_probe
from tvmatch.training.attention_probe import largest_logits, logit_figures, probe
from tvmatch.training.engine import prepare_network


def direct(network: DiT, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor, label: torch.Tensor, w: torch.Tensor):
    """The same once more, block by block, from the weights and the definition."""
    hidden, gate, update = network.nothing_added(network.embed(x))
    c, found = network.conditioning(t, s, 1 / w, label), []

    def normalised(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    for block in network.blocks:
        shift, scale = block.modulation(c)[:2]
        attention, inner = block.attention, normalised(hidden + gate * update) * (1 + scale) + shift
        q, k, _ = (inner @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, -1)
        heads = [part.unflatten(-1, (attention.num_heads, -1)) for part in (q, k)]
        if isinstance(attention.q_norm, nn.Identity):
            q, k = heads
        else:
            q, k = normalised(heads[0]) * attention.q_norm.weight, normalised(heads[1]) * attention.k_norm.weight
        found.append(float(torch.einsum("bnhd,bmhd->bhnm", q, k).abs().max() / math.sqrt(q.shape[-1])))
        hidden, gate, update = block(hidden, gate, update, c)
    return found


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("most", [2**24, 1])  # at once, and head by head
def test_against_the_definition(
    inputs: dict, small_config: DiTConfig, qk_norm: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_probe, "MOST_LOGITS", most)
    config = DiTConfig(**{**small_config.__dict__, "qk_norm": qk_norm})
    network = randomise(DiT(config)).double()
    with torch.no_grad():
        expected = direct(network, **inputs)
    assert largest_logits(network, **inputs) == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == 2  # one for each block


def test_norms_bound_the_logits(inputs: dict, small_config: DiTConfig) -> None:
    network = DiT(small_config).double()
    bound = math.sqrt(small_config.hidden_size // small_config.num_heads)
    assert all(value <= bound * (1 + 1e-9) for value in largest_logits(network, **inputs))


def test_nothing_is_left_behind(flow: FlowMap, inputs: dict) -> None:
    before = torch.random.get_rng_state()
    largest_logits(flow.network, **inputs)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module._forward_pre_hooks for module in flow.network.modules())
    with pytest.raises(RuntimeError):
        largest_logits(flow.network, **(inputs | {"label": torch.tensor([0.5])}))
    assert not any(module._forward_pre_hooks for module in flow.network.modules())


def test_a_network_without_attention_has_none() -> None:
    network = MLP(MLPConfig())
    ones = torch.ones(3)
    assert largest_logits(network, torch.randn(3, 2), ones, ones, torch.full((3,), -1), ones) == []


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_a_batch_of_training_is_enough(flow: FlowMap, batch: int) -> None:
    x0, label = torch.randn(batch, 2, 4, 4, dtype=torch.float64), torch.arange(batch) % 4 - 1
    found = probe(flow.network, x0, label, 2.0)
    assert len(found) == 2
    assert found == probe(flow.network, x0, label, 2.0)


def test_recomputed_blocks_give_the_same(flow: FlowMap, inputs: dict) -> None:
    plain = largest_logits(flow.network, **inputs)
    prepare_network(flow.network, None, compiled=False, recompute="full")
    assert largest_logits(flow.network, **inputs) == plain


@pytest.mark.slow
def test_compiled_blocks_give_the_same_and_stay_compiled(flow: FlowMap, inputs: dict) -> None:
    plain = largest_logits(flow.network, **inputs)
    prepare_network(flow.network, None, compiled=True, recompute="none")
    with torch.no_grad():
        flow.network(**inputs)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert largest_logits(flow.network, **inputs) == pytest.approx(plain, rel=1e-6)
        flow.network(**inputs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled > 0


def test_a_block_that_is_not_finite_hides_no_other() -> None:
    nan, inf = float("nan"), float("inf")
    assert logit_figures([]) == ({}, {})
    assert logit_figures([1.0, 3.0]) == (
        {"largest_attention_logit": 3.0},
        {"largest_attention_logit_by_block": [1.0, 3.0]},
    )
    assert logit_figures([1.0, nan, 2.0, inf]) == (
        {"largest_attention_logit": 2.0, "attention_blocks_not_finite": 2},
        {"largest_attention_logit_by_block": [1.0, None, 2.0, None]},
    )
    assert logit_figures([nan])[0] == {"attention_blocks_not_finite": 1}
