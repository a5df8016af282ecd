import pytest
import torch

from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.networks.presets import NETWORKS, build_network, network_config
from tvmatch.networks.unet import UNetConfig


@pytest.mark.parametrize(
    ("name", "millions"), [("DiT-S/2", 33), ("DiT-B/2", 131), ("DiT-L/2", 459), ("DiT-XL/2", 678), ("DiT-XL/8", 679)]
)
def test_sizes_are_those_of_the_field(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_network(network_config(name, 32, 4, 1000))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_xl_has_18_heads_of_64() -> None:
    config = network_config("DiT-XL/2", 32, 4, 1000)
    assert (config.num_heads, config.hidden_size // config.num_heads) == (18, 64)


def test_how_many_matrices_of_xl_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a start of it pays for (docs/engine.md)."""
    sides = []
    monkeypatch.setattr("tvmatch.networks.modulated.init_spectral_", lambda w, *_: sides.append(min(w.shape)))
    with torch.device("meta"):
        build_network(network_config("DiT-XL/2", 32, 4, 1000))
    assert (len(sides), sides.count(1152)) == (119, 115)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"no network is called 'DiT-XL2'; did you mean .*DiT-XL/2"):
        network_config("DiT-XL2", 32, 4, 10)
    assert {"DiT-S/2", "DiT-B/4", "DiT-L/8", "DiT-XL/2"} <= set(NETWORKS)


def test_unconditional_and_mlp() -> None:
    assert build_network(network_config("DiT-Digits/4", 8, 1, 0)).num_classes == 0
    assert isinstance(build_network(MLPConfig()), MLP)
    with pytest.raises(TypeError, match="no network has a configuration of type dict"):
        build_network({})


def test_points_have_networks_of_their_own() -> None:
    assert network_config("MLP-32x2", 1, 2, 3) == MLPConfig(2, 3, hidden_size=32, depth=2, as_pictures=True)
    with pytest.raises(ValueError, match="MLP-32x2 is a network for points, not for pictures of 8 pixels"):
        network_config("MLP-32x2", 8, 1, 3)


@pytest.mark.parametrize(
    "config", [network_config("DiT-Digits/4", 8, 1, 10), MLPConfig(), network_config("UNet-Tiny", 8, 3, 10)]
)
def test_nothing_is_drawn_where_all_weights_will_be_loaded(config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Initial weights of DiT-XL take a CPU longer than everything else that opening a run does."""
    torch.manual_seed(0)
    full = build_network(config)
    before = torch.get_rng_state()
    monkeypatch.setattr("tvmatch.networks.modulated.init_spectral_", None)  # would fail
    empty = build_network(config, initialise=False)
    assert torch.equal(torch.get_rng_state(), before) or isinstance(config, UNetConfig)  # its embedding is drawn
    empty.load_state_dict(full.state_dict())
    for (name, ours), (_, theirs) in zip(empty.named_buffers(), full.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name  # which no checkpoint holds
    monkeypatch.undo()
    torch.manual_seed(0)
    again = build_network(config)  # and outside, weights are as ever
    for name, value in again.state_dict().items():
        assert torch.equal(value, full.state_dict()[name]), name
