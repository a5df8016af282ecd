import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.metrics.networks import Small, save_small
from tvmatch.metrics.features import FeatureNetwork, Preprocessing, legacy_resize, sha256_of

CPU = torch.device("cpu")


def pictures(count: int = 3, side: int = 8, channels: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8))


@pytest.mark.parametrize(("side", "size"), [(8, 19), (32, 299), (19, 8), (7, 7)])
def test_the_legacy_grid_by_its_definition(side: int, size: int) -> None:
    """Output pixel i lies at i * side / size; beyond the last pixel there is the last pixel."""
    x = torch.rand(1, 1, side, side, dtype=torch.float64)

    def at(row: float, column: float) -> float:
        (r, a), (c, b) = ((int(p), p - int(p)) for p in (row, column))
        r1, c1 = min(r + 1, side - 1), min(c + 1, side - 1)
        p = x[0, 0]
        top, bottom = p[r, c] * (1 - b) + p[r, c1] * b, p[r1, c] * (1 - b) + p[r1, c1] * b
        return float(top * (1 - a) + bottom * a)

    resized = legacy_resize(x.float(), size)[0, 0]
    for i in range(0, size, max(1, size // 6)):
        for j in range(0, size, max(1, size // 5)):
            assert float(resized[i, j]) == pytest.approx(at(i * side / size, j * side / size), abs=1e-6)


def test_the_legacy_grid_is_that_of_grid_sample() -> None:
    """The same, as an affine grid with its corner pixels shifted."""
    x, size = torch.rand(2, 3, 32, 32), 299
    theta = torch.tensor([[1.0, 0, 1 / 32 - 1 / size], [0, 1, 1 / 32 - 1 / size]]).repeat(2, 1, 1)
    grid = nn.functional.affine_grid(theta, [2, 3, size, size], align_corners=False)
    sampled = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    assert torch.allclose(legacy_resize(x, size), sampled, atol=1e-5)


def test_inception_sees_pictures_less_128_over_128() -> None:
    x = Preprocessing(size=8)(pictures())
    assert x.shape == (3, 3, 8, 8)
    assert torch.equal(x, (pictures().permute(0, 3, 1, 2).float() - 128) / 128)


def test_one_number_a_channel_and_grey_pictures() -> None:
    mean, deviation = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    grey = pictures(channels=1)
    x = Preprocessing(8, "bicubic", mean, deviation)(grey)
    for channel in range(3):
        expected = (grey[..., 0].float() - mean[channel]) / deviation[channel]
        assert torch.allclose(x[:, channel], expected)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_other_filters_are_antialiased_and_stay_in_range(resize: str) -> None:
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    x = Preprocessing(16, resize, (0.0,), (1.0,))(stripes)
    assert x.std() < 20  # without antialiasing the stripes would stay
    assert x.min() >= 0
    assert x.max() <= 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size of the pictures must be at least 1, got 0"),
        ({"resize": "lanczos"}, "resize must be legacy, bilinear or bicubic, got 'lanczos'"),
        ({"mean": (1.0, 2.0)}, r"mean must be one finite number or three, got \[1.0, 2.0\]"),
        ({"deviation": (1.0, 0.0, 1.0)}, "deviation must be above 0"),
        ({"mean": (float("nan"),)}, "mean must be one finite number"),
    ],
)
def test_wrong_preprocessing_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    network = FeatureNetwork(save_small(tmp_path / "small.pt"), Preprocessing(12), CPU)
    whole = network(pictures(6))
    assert whole.shape == (6, 12)
    assert torch.allclose(whole, torch.cat([network(part) for part in pictures(6).split(2)]), atol=1e-5)
    assert torch.allclose(whole, Small()(Preprocessing(12)(pictures(6))), atol=1e-5)
    assert network.identity()["sha256"] == sha256_of(tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"pictures are uint8 .* got torch.float32"):
        network(pictures().float())


class Wrong(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "shape":
            return x
        return x.flatten(1) * float("nan")


@pytest.mark.parametrize(("how", "message"), [("shape", r"gave \[3, 3, 8, 8\] for 3 pictures"), ("nan", "gave NaN")])
def test_wrong_networks_are_named(tmp_path: Path, how: str, message: str) -> None:
    network = FeatureNetwork(save_small(tmp_path / "wrong.pt", Wrong(how)), Preprocessing(8), CPU)
    with pytest.raises(ValueError, match=message):
        network(pictures())


class Trap:
    """Code that runs when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (open, (str(Trap.path), "w"))


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    Trap.path = tmp_path / "sprung"
    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is not TorchScript"):
        FeatureNetwork(tmp_path / "trap.pt", Preprocessing(), CPU)
    torch.save({"trap": Trap()}, tmp_path / "trap2.pt")
    with pytest.raises(ValueError, match="is not TorchScript"):
        FeatureNetwork(tmp_path / "trap2.pt", Preprocessing(), CPU)
    assert not Trap.path.exists()
    with pytest.raises(ValueError, match="there is no such file"):
        FeatureNetwork(tmp_path / "none.pt", Preprocessing(), CPU)


def test_the_hash_of_a_folder_knows_names_and_contents(tmp_path: Path) -> None:
    hashes = set()
    for name, text in (("a", "x"), ("a", "y"), ("b", "y")):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / name).write_text(text)
        hashes.add(sha256_of(folder))
    assert len(hashes) == 3


class Precision(nn.Module):
    """Gives what the settings of precision are while it runs, in place of features."""

    def __call__(self, x: Tensor) -> Tensor:
        whole = torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        return torch.full((len(x), 1), float(whole))


def test_features_are_computed_in_whole_float32(tmp_path: Path) -> None:
    network = FeatureNetwork(save_small(tmp_path / "small.pt"), Preprocessing(12), CPU)
    network.module = Precision()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        assert network(pictures()).tolist() == [[1.0]] * 3
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Strange(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.layer = nn.Linear(3 * 14 * 14, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "size":
            return self.layer(x.flatten(1))
        if self.how == "whole":
            return (x.flatten(1) * 10).long()
        if self.how == "large":
            return x.flatten(1).repeat(1, 100)
        return x.flatten(1) - x.flatten(1).mean(0)  # what batch norm does in training mode


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("size", r"cannot take float32 pictures \[3, 3, 8, 8\] .*statistics --size"),
        ("whole", "gave torch.int64; features are floating-point numbers"),
        ("large", r"gave 19200 numbers a picture; a covariance of more than 16384 does not fit"),
        ("batch", "the features of a picture change by .* with the pictures beside it. .* network.eval"),
    ],
)
def test_networks_that_cannot_serve_are_named(tmp_path: Path, how: str, message: str) -> None:
    network = FeatureNetwork(save_small(tmp_path / "strange.pt", Strange(how)), Preprocessing(8), CPU)
    with pytest.raises(ValueError, match=message):
        network(pictures())


def test_a_batch_of_one_is_checked_beside_its_negative(tmp_path: Path) -> None:
    network = FeatureNetwork(save_small(tmp_path / "strange.pt", Strange("batch")), Preprocessing(8), CPU)
    with pytest.raises(ValueError, match=r"of a picture change by .* with the pictures beside it"):
        network(pictures(1))
    assert FeatureNetwork(save_small(tmp_path / "small.pt"), Preprocessing(12), CPU)(pictures(1)).shape == (1, 12)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * (1 + 0.003 * torch.randn_like(x).flatten(1))


@pytest.mark.parametrize("count", [1, 3])
def test_noise_below_a_percent_is_seen(tmp_path: Path, count: int) -> None:
    network = FeatureNetwork(save_small(tmp_path / "noisy.pt", Noisy()), Preprocessing(8), CPU)
    with pytest.raises(ValueError, match=r"change by 0.00\d+, relative, when the same pictures come again"):
        network(pictures(count))


class Transformer(nn.Module):
    """What DINOv2 is: patches of 14 pixels and a class token through attention; the token is the feature."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 14, 14)
        self.token = nn.Parameter(torch.ones(1, 1, width))
        self.places = nn.Parameter(torch.linspace(-1, 1, 257)[None, :, None].repeat(1, 1, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        q, k, v = self.qkv(self.norm(x))[:, None].chunk(3, -1)
        return self.norm(x + nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])[:, 0]


def test_a_traced_vision_transformer_serves_at_224_pixels(tmp_path: Path) -> None:
    """As docs/evaluation.md has DINOv2 exported: traced with two pictures, used with any number."""
    torch.manual_seed(0)
    model = Transformer().eval()
    torch.jit.trace(model, torch.zeros(2, 3, 224, 224)).save(str(tmp_path / "dino.pt"))
    preprocessing = Preprocessing(224, "bicubic", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    network = FeatureNetwork(tmp_path / "dino.pt", preprocessing, CPU)
    features = network(pictures(3, 32))
    assert features.shape == (3, 8)
    assert torch.allclose(features, model(preprocessing(pictures(3, 32))), atol=1e-5)
    assert features.std(0).min() > 1e-4
    assert torch.allclose(network(pictures(3, 32)[:1]), features[:1], atol=1e-5)


def test_weights_in_16_bits_are_widened(tmp_path: Path) -> None:
    network = FeatureNetwork(save_small(tmp_path / "half.pt", Small().half()), Preprocessing(12), CPU)
    features = network(pictures())
    assert features.dtype == torch.float32
    assert torch.allclose(features, Small().half().float()(Preprocessing(12)(pictures())), atol=1e-5)
