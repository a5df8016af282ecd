import copy
import dataclasses

import pytest
import torch

from tests.conftest import randomise
from tvmatch.flow_map import FlowMap
from tvmatch.networks.base import Tangents
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.networks.modulated import ModulatedNetwork
from tvmatch.networks.probe import verify_tangents


def test_a_fresh_network_draws_nothing(small_config: DiTConfig) -> None:
    x, half = torch.randn(2, 2, 4, 4), torch.full((2,), 0.5)
    assert not DiT(small_config)(x, half, half, torch.tensor([0, -1]), torch.ones(2)).any()


def test_patches_and_pictures_are_inverse_up_to_the_order_of_channels() -> None:
    """Patches are read channel by channel and written pixel by pixel, as in the official layout."""
    config = DiTConfig(image_size=6, channels=3, patch_size=2, hidden_size=8, depth=1, num_heads=1)
    network, x = DiT(config), torch.randn(2, 3, 6, 6)
    tokens = network.to_tokens(x)
    assert tokens.shape == (2, 9, 12)
    torch.testing.assert_close(tokens[0, 4].view(3, 2, 2), x[0, :, 2:4, 2:4])
    by_pixel = tokens.view(2, 9, 3, 4).transpose(2, 3).flatten(2)
    torch.testing.assert_close(network.from_tokens(by_pixel), x)


def test_the_null_class_has_a_row_of_its_own(flow: FlowMap, inputs: dict) -> None:
    table = flow.network.conditioning.label.weight
    assert table.shape == (4, 16)
    flow.network(**inputs).sum().backward()
    assert table.grad.abs().sum(1).gt(0).tolist() == [True, False, True, True]  # classes -1, 0, 2 were asked for


def test_the_network_sees_t_the_gap_and_the_inverse_of_w(flow: FlowMap, inputs: dict) -> None:
    seen = {}
    for name in ("time", "gap", "guidance"):
        module = getattr(flow.network.conditioning, name)
        module.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
    flow.network(**inputs)
    torch.testing.assert_close(seen["time"], inputs["t"])
    torch.testing.assert_close(seen["gap"], inputs["t"] - inputs["s"])
    torch.testing.assert_close(seen["guidance"], 1 / inputs["w"])


@pytest.mark.parametrize(
    "network",
    [
        DiT(DiTConfig(image_size=4, channels=1, num_classes=0, patch_size=1, hidden_size=8, depth=1, num_heads=2)),
        DiT(DiTConfig(8, 3, 2, 4, 8, 2, 1, modulation_norm=False, qk_norm=False)),
        DiT(DiTConfig(8, 3, 2, 4, 8, 2, 1, norm="layer", initialisation="xavier")),
        MLP(MLPConfig(dimension=2, hidden_size=16, depth=3)),
        MLP(MLPConfig(dimension=2, hidden_size=16, depth=1, norm="layer")),
        MLP(MLPConfig(dimension=2, hidden_size=16, depth=1, as_pictures=True)),
        MLP(MLPConfig(dimension=5, num_classes=4, hidden_size=16, depth=2)),
    ],
)
def test_carried_tangents_equal_forward_mode_of_the_whole(network: ModulatedNetwork) -> None:
    network = randomise(network).double()
    x = torch.randn(3, *network.data_shape, dtype=torch.float64)
    t, s = torch.tensor([0.9, 0.5, 0.4]).double(), torch.tensor([0.1, 0.2, 0.4]).double()
    label, w = torch.full((3,), network.num_classes - 1), torch.tensor([1.0, 2.0, 3.0]).double()
    direction = Tangents(torch.randn_like(x), torch.randn_like(t), torch.randn_like(s))
    pair = network(x, t, s, label, w, tangents=direction)
    whole = torch.func.jvp(lambda x, t, s: network(x, t, s, label, w), (x, t, s), tuple(direction))
    torch.testing.assert_close(pair, whole, rtol=1e-10, atol=1e-10)
    verify_tangents(FlowMap(network))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 9, "patch_size": 2}, "image_size=9 is not a multiple of patch_size=2"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"num_classes": -1}, "num_classes must be 0"),
        ({"norm": "batch"}, "norm must be rms or layer, got 'batch'"),
        ({"initialisation": None}, "initialisation must be spectral or xavier, got None"),
        ({"hidden_size": 30, "num_heads": 4}, "hidden size 30"),
        ({"hidden_size": 6, "num_heads": 1}, "multiple of 4"),
    ],
)
def test_bad_shapes_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(DiTConfig(**({"depth": 1, "num_classes": 2} | values)))


def norm_of_hidden_tokens(network: ModulatedNetwork) -> float:
    return max(float(torch.linalg.matrix_norm(block.mlp.fc1.weight.double(), ord=2)) for block in network.blocks)


def test_each_semi_lipschitz_change_can_be_removed(small_config: DiTConfig) -> None:
    """Each option changes what the network computes (weights equal), or how it starts, and nothing else."""
    torch.manual_seed(1)
    ours = randomise(DiT(small_config))
    x, t, s = torch.randn(2, 2, 4, 4), torch.full((2,), 0.9), torch.full((2,), 0.2)
    given = (x, t, s, torch.tensor([0, -1]), torch.ones(2))
    for change in ({"norm": "layer"}, {"qk_norm": False}, {"modulation_norm": False}):
        other = DiT(dataclasses.replace(small_config, **change))
        other.load_state_dict({name: value for name, value in ours.state_dict().items() if name in other.state_dict()})
        assert float((other(*given) - ours(*given)).detach().abs().max()) > 1e-2, change
    assert norm_of_hidden_tokens(DiT(small_config)) == pytest.approx(1, rel=1e-3)
    xavier = DiT(dataclasses.replace(small_config, initialisation="xavier"))
    assert norm_of_hidden_tokens(xavier) > 1.2
    assert not xavier(*given).any()  # modulation and output start at zero either way
    assert norm_of_hidden_tokens(MLP(MLPConfig(hidden_size=16, initialisation="xavier"))) > 1.2


def test_all_blocks_are_called_alike(flow: FlowMap, inputs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first block whose tangent needs no gradient would be compiled once more than the others."""
    seen = []
    for block in flow.network.blocks:
        pair = block.pair
        monkeypatch.setattr(
            block,
            "pair",
            lambda given, tangents, pair=pair: (
                seen.append([x.requires_grad for x in (*given, *tangents)]) or pair(given, tangents)
            ),
        )
    flow.network(**inputs, tangents=Tangents(s=torch.ones_like(inputs["s"])))
    assert len(seen) > 1
    assert all(one == seen[0] for one in seen)


def test_a_network_made_without_memory_is_whole_once_it_has_weights(small_config: DiTConfig) -> None:
    """Positions are in no state dict."""
    network = randomise(DiT(small_config))
    half = torch.full((2,), 0.5)
    inputs = torch.randn(2, 2, 4, 4), half, half / 2, torch.tensor([0, -1]), torch.ones(2)
    with torch.device("meta"):
        empty, assigned = DiT(small_config, initialise=False), DiT(small_config, initialise=False)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(network.state_dict())
    assigned.load_state_dict(network.state_dict(), assign=True)
    for other in (empty, assigned, copy.deepcopy(empty)):
        assert torch.equal(other(*inputs), network(*inputs))
    fresh = DiT(small_config, initialise=False).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*fresh.parameters(), fresh.positions):
            tensor.fill_(float("nan"))
    fresh.reset_parameters()
    assert torch.equal(fresh.positions, network.positions)
    assert all(bool(parameter.isfinite().all()) for parameter in fresh.parameters())
    assert set(fresh.blocks[0].attention.q_norm.weight.tolist()) == {1.0}
