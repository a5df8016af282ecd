import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data.support import TAEF2, crops
from tvmatch.data import to_unit_range
from tvmatch.data.codecs import CodecError, open_codec
from tvmatch.data.codecs import tiny as tiny_module
from tvmatch.data.codecs.tiny import TinyCodec, convert

KL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "sample_size": 16,
}


def pictures(count: int = 2, size: int = 64) -> torch.Tensor:
    return to_unit_range(torch.from_numpy(crops(count, size)[0]))


def decibels(codec, x: torch.Tensor) -> float:
    back = codec.decode(codec.encode(x).mean).clamp(-1, 1)
    return float(-10 * torch.log10(((back - x) / 2).square().mean((1, 2, 3))).mean())


def test_the_small_autoencoder_gives_pictures_back():
    codec = open_codec(str(TAEF2))
    assert (codec.channels, codec.factor, codec.has_deviation) == (32, 8, False)
    x = pictures(4, 96)
    assert codec.encode(x).mean.shape == (4, 32, 12, 12)
    assert codec.encode(x).deviation is None
    assert decibels(codec, x) > 27  # the bar; 29.1 was measured


@pytest.mark.parametrize("groups", [1, 8])
def test_its_norms_have_four_groups(monkeypatch, groups):
    x = pictures(4, 96)
    right = decibels(TinyCodec(TAEF2), x)
    monkeypatch.setattr(tiny_module, "GROUPS", groups)
    assert decibels(TinyCodec(TAEF2), x) < right - 1


def test_the_hash_tells_weights_apart(tmp_path):
    codec = open_codec(str(TAEF2))
    shutil.copytree(TAEF2, tmp_path / "copy")
    assert open_codec(str(tmp_path / "copy"), codec.hash).hash == codec.hash
    tensors = load_file(TAEF2 / "taef2_decoder.safetensors")
    tensors["1.bias"][0] += 1
    save_file(tensors, tmp_path / "copy" / "taef2_decoder.safetensors")
    with pytest.raises(CodecError, match=f"but {codec.hash[:12]} is needed"):
        open_codec(str(tmp_path / "copy"), codec.hash)


def test_pickled_weights_are_converted_on_request_only(tmp_path):
    for part in ("encoder", "decoder"):
        torch.save(load_file(TAEF2 / f"taef2_{part}.safetensors"), tmp_path / f"taef2_{part}.pth")
    with pytest.raises(CodecError, match=r"pickles.*python -m tvmatch\.data\.codecs\.tiny"):
        open_codec(str(tmp_path))
    convert(tmp_path, tmp_path / "new")
    assert open_codec(str(tmp_path / "new")).hash == open_codec(str(TAEF2)).hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"must hold one \*encoder\.pth, found 0"),
        (b"no pickle", r"taef2_encoder\.pth cannot be read as weights"),
        ([1, 2], r"taef2_encoder\.pth holds no named tensors"),
    ],
)
def test_what_cannot_be_converted_is_said_and_leaves_nothing(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "taef2_encoder.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "taef2_encoder.pth")
    with pytest.raises(CodecError, match=message):
        convert(tmp_path, tmp_path / "new")
    with pytest.raises(SystemExit, match=rf"^error: .*{message}.*$"):
        tiny_module.main([str(tmp_path), str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_conversion_says_how_it_is_called():
    for arguments in ([], ["old"], ["old", "new", "more"]):
        with pytest.raises(SystemExit, match=r"^usage: python -m tvmatch\.data\.codecs\.tiny OLD_FOLDER NEW_FOLDER$"):
            tiny_module.main(arguments)


def test_damaged_and_foreign_weights_are_refused(tmp_path):
    shutil.copytree(TAEF2, tmp_path / "cut")
    file = tmp_path / "cut" / "taef2_encoder.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CodecError, match="damaged"):
        open_codec(str(tmp_path / "cut"))
    save_file({"blocks.first.weight": torch.zeros(3)}, file)
    with pytest.raises(CodecError, match=r"not of the TAESD family.*numbered"):
        open_codec(str(tmp_path / "cut"))
    shutil.copy(TAEF2 / "taef2_encoder.safetensors", tmp_path / "cut" / "other_encoder.safetensors")
    with pytest.raises(CodecError, match=r"must hold one \*encoder\.safetensors, found 2"):
        open_codec(str(tmp_path / "cut"))


def test_pictures_must_fit_the_cells():
    with pytest.raises(CodecError, match=r"60 x 60 pixels.*multiples of 8.*--image-size 56"):
        open_codec(str(TAEF2)).encode(torch.zeros(1, 3, 60, 60))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        open_codec("pixels").encode(torch.zeros(1, 1, 8, 8))


def test_autoencoder_kl_from_a_folder(tmp_path):
    network = diffusers.AutoencoderKL(**KL)
    network.save_pretrained(tmp_path / "kl")
    codec = open_codec(str(tmp_path / "kl"))
    assert (codec.channels, codec.factor, codec.has_deviation) == (3, 2, True)
    x = pictures(2, 16)
    posterior = codec.encode(x)
    expected = network.encode(x).latent_dist
    torch.testing.assert_close(posterior.mean, expected.mean)
    torch.testing.assert_close(posterior.deviation, expected.std)
    torch.testing.assert_close(codec.decode(posterior.mean), network.decode(expected.mean).sample)
    assert not posterior.mean.requires_grad
    diffusers.AutoencoderKL(**KL).save_pretrained(tmp_path / "other")
    with pytest.raises(CodecError, match="its weights are not"):
        open_codec(str(tmp_path / "other"), codec.hash)


def test_autoencoder_tiny_from_a_folder(tmp_path):
    network = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=5,
    )
    network.save_pretrained(tmp_path / "tiny")
    codec = open_codec(str(tmp_path / "tiny"))
    assert (codec.channels, codec.factor, codec.has_deviation) == (5, 2, False)
    x = pictures(2, 16)
    latents = codec.encode(x).mean
    assert latents.shape == (2, 5, 8, 8)
    torch.testing.assert_close(latents, network.encode(x).latents)
    torch.testing.assert_close(codec.decode(latents), network.decode(latents).sample)


def test_pickles_and_other_classes_of_diffusers_are_refused(tmp_path):
    diffusers.AutoencoderKL(**KL).save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(CodecError, match="cannot be loaded"):
        open_codec(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(CodecError, match="is a UNet2DModel"):
        open_codec(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._headers.is_offline_mode", lambda: True, raising=False)
    with pytest.raises(CodecError, match=r"codec 'nobody/nothing' .*the hub did not give it.*Give `pixels`"):
        open_codec("nobody/nothing")


def test_nonsense_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CodecError, match="is a file; give the folder"):
        open_codec(str(tmp_path / "file"))
    with pytest.raises(CodecError, match="empty"):
        open_codec("")
