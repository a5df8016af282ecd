"""The parts of a pipeline by themselves: what they accept, and what they refuse in one sentence."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ImagePipelineOutput

from tests.conftest import randomise
from tvmatch.integrations.diffusers import TVMatchPipeline, TVMatchScheduler, TVMatchTransformer
from tvmatch.networks.dit import DiTConfig
from tvmatch.sampling import METHODS, seeded_noise


def transformer(channels: int = 3, num_classes: int = 3, scaled: bool = True) -> TVMatchTransformer:
    shape = DiTConfig(4, channels, num_classes, patch_size=2, hidden_size=16, depth=2, num_heads=2)
    return randomise(TVMatchTransformer(dataclasses.asdict(shape), scaled)).requires_grad_(False).eval()


def quiet(pipeline: TVMatchPipeline) -> TVMatchPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline() -> TVMatchPipeline:
    names = ["bee", "wasp", "ant"]
    return quiet(TVMatchPipeline(transformer(), TVMatchScheduler(), None, names, 1.5, 2, "1:2"))


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_output_types(pipeline: TVMatchPipeline) -> None:
    outputs = {kind: pipeline(["bee", 2], generator=seeded(), output_type=kind) for kind in ("pil", "np", "pt")}
    assert all(isinstance(output, ImagePipelineOutput) for output in outputs.values())
    images, arrays, tensors = (output.images for output in outputs.values())
    assert [image.size for image in images] == [(4, 4)] * 2
    assert (arrays.shape, tensors.shape) == ((2, 4, 4, 3), (2, 3, 4, 4))
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.rint(arrays * 255), np.stack([np.asarray(image) for image in images]))
    (plain,) = pipeline(["bee", 2], generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(plain, tensors)


def test_labels_and_how_many_of_each(pipeline: TVMatchPipeline) -> None:
    noise = seeded_noise(0, range(4), (3, 4, 4))

    def draw(*labels: Any) -> torch.Tensor:
        return pipeline(*labels, latents=noise, output_type="latent").images

    both = draw([0, 1], 2)
    assert torch.equal(both, draw([0, 0, 1, 1]))
    assert torch.equal(both, draw(["bee", "bee", "wasp", "1"]))
    assert torch.equal(both, draw(torch.tensor([0, 1]), 2))
    assert torch.equal(both, draw(np.array([0, 1]), 2))
    assert torch.equal(draw(np.array(2), 4), draw(2, 4))
    assert torch.equal(draw(None, 4), draw(-1, 4))
    assert not torch.equal(both, draw([0, 2], 2))
    assert len(pipeline().images) == len(pipeline("bee").images) == 1


def test_a_generator_for_all_or_one_each(pipeline: TVMatchPipeline) -> None:
    def draw(generator: Any) -> torch.Tensor:
        return pipeline([0, 1], generator=generator, output_type="latent").images

    assert torch.equal(draw(seeded(1)), draw(seeded(1)))
    assert not torch.equal(draw(seeded(1)), draw(seeded(2)))
    swapped = [draw([seeded(a), seeded(b)]) for a, b in ((1, 2), (1, 3))]
    assert torch.equal(swapped[0][0], swapped[1][0])
    assert not torch.equal(swapped[0][1], swapped[1][1])


def test_defaults_are_the_model_s_own(pipeline: TVMatchPipeline) -> None:
    drawn = [
        pipeline("ant", generator=seeded(), output_type="latent", **asked).images
        for asked in (
            {},
            {"num_inference_steps": 2, "guidance_scale": 1.5},
            {"timesteps": [1, 0.5, 0]},
            {"timesteps": [1, 0.4, 0]},
            {"num_inference_steps": 1},
            {"guidance_scale": 2},
        )
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert all(not torch.allclose(drawn[0], other) for other in drawn[3:])


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("scaled", [True, False])
def test_the_scheduler_walks_as_our_samplers_do(method: str, scaled: bool) -> None:
    model = transformer(scaled=scaled)
    drawing = quiet(TVMatchPipeline(model, TVMatchScheduler(method), trained_guidance="1:2"))
    noise, label = seeded_noise(0, range(3), (3, 4, 4)), torch.tensor([0, -1, 2])
    ours = drawing(label, 1, 3, 1.3, generator=seeded(5), latents=noise, output_type="latent").images
    again = seeded(5)  # of the noise that is put back, where any is
    fresh = {"fresh": lambda _: torch.randn(noise.shape, generator=again)} if method == "consistency" else {}
    theirs = METHODS[method](model.flow, noise, label, 1.3, 3, **fresh)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_pictures_of_one_channel_and_no_classes() -> None:
    drawing = quiet(TVMatchPipeline(transformer(1, 0), TVMatchScheduler()))
    images = drawing(num_images_per_label=3).images
    assert [image.mode for image in images] == ["L"] * 3
    with pytest.raises(ValueError, match="trained without classes"):
        drawing(0)
    with pytest.raises(ValueError, match="trained without classes, so w must be 1, got 2"):
        drawing(guidance_scale=2)


def test_weights_of_16_bits(pipeline: TVMatchPipeline) -> None:
    """Times stay float32: in 16 bits they would blur together."""
    noise, seen = seeded_noise(0, range(3), (3, 4, 4)), []
    exact = pipeline([0, 1, 2], latents=noise, num_inference_steps=4, output_type="latent").images
    pipeline.transformer.register_forward_pre_hook(lambda _, inputs: seen.append([one.dtype for one in inputs]))
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 0.004)):
        drawn = pipeline.to(dtype)([0, 1, 2], latents=noise, num_inference_steps=4, output_type="latent").images
        assert drawn.dtype == torch.float32
        assert seen.pop() == [dtype, torch.float32, torch.float32]
        assert 0 < float((drawn - exact).norm() / exact.norm()) < tolerance
        pipeline.to(torch.float32)


def test_the_codec_of_a_model_of_latents(tmp_path: Path) -> None:
    """Any AutoencoderKL; latents are brought back to its scale."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    made = TVMatchPipeline(transformer(4), TVMatchScheduler(), vae, latents_mean=mean, latents_std=std)
    made.save_pretrained(tmp_path)
    drawing = quiet(TVMatchPipeline.from_pretrained(tmp_path))
    assert isinstance(drawing.vae, AutoencoderKL)
    latents = drawing(0, generator=seeded(), output_type="latent").images
    with torch.no_grad():
        column = [torch.tensor(numbers).reshape(-1, 1, 1) for numbers in (std, mean)]
        expected = (vae.decode(latents * column[0] + column[1]).sample / 2 + 0.5).clamp(0, 1)
    assert torch.equal(drawing(0, generator=seeded(), output_type="pt").images, expected)
    drawing.vae = None
    with pytest.raises(ValueError, match="draws latents of 4 channels and has no codec"):
        drawing(0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"class_labels": 3}, "class_labels must be 0 to 2, or -1 for no class; got 3"),
        ({"class_labels": [0, -2]}, "got -2"),
        ({"class_labels": "beee"}, "no class is called 'beee'; did you mean 'bee'"),
        ({"class_labels": 1.0}, "class_labels are names or whole numbers, got 1.0"),
        ({"class_labels": [True]}, "names or whole numbers, got True"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"num_images_per_label": 0}, "num_images_per_label must be a whole number, at least 1; got 0"),
        ({"num_inference_steps": 0}, "at least 1 step"),
        ({"num_inference_steps": 1.5}, "num_inference_steps must be a whole number, at least 1; got 1.5"),
        ({"num_inference_steps": True}, "num_inference_steps must be a whole number"),
        ({"num_inference_steps": 2, "timesteps": [1, 0]}, "give either num_inference_steps or timesteps"),
        ({"timesteps": 5}, "timesteps are times from 1 down to 0, got 5"),
        ({"class_labels": np.array(3)}, "class_labels must be 0 to 2, or -1 for no class; got 3"),
        ({"class_labels": np.array([[0, 1]])}, r"names or whole numbers, got \[0, 1\]"),
        ({"timesteps": [1, 0.5]}, "runs strictly down from 1"),
        ({"timesteps": ["a", 0]}, r"at least two finite times, from 1 to 0; got \['a', 0\]"),
        ({"latents": np.zeros((1, 3, 8, 8), np.float32)}, "latents must be a tensor of noise .* got a ndarray"),
        ({"guidance_scale": 0}, "must be positive and finite .* got 0"),
        ({"guidance_scale": float("nan")}, "must be positive and finite"),
        ({"guidance_scale": "much"}, "guidance_scale must be a number, got 'much'"),
        ({"generator": 7}, r"generator must be a torch.Generator .*, got 7"),
        ({"generator": [torch.Generator()] * 3}, "one a picture: 2; got 3"),
        ({"generator": 7, "latents": torch.zeros(2, 3, 4, 4)}, r"generator must be a torch.Generator .*, got 7"),
        ({"generator": [torch.Generator()], "latents": torch.zeros(2, 3, 4, 4)}, "one a picture: 2; got 1"),
        ({"latents": torch.zeros(2, 3, 4, 5)}, r"latents must be floating-point noise \[2, 3, 4, 4\]"),
        ({"output_type": "jpeg"}, "output_type must be pil, np, pt, latent; got 'jpeg'"),
    ],
)
def test_bad_values(pipeline: TVMatchPipeline, asked: dict[str, Any], message: str) -> None:
    calls = []
    pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        pipeline(**{"class_labels": [0, 1], **asked})
    assert not calls


def test_a_scale_not_seen_in_training_is_said(pipeline: TVMatchPipeline) -> None:
    with pytest.warns(UserWarning, match="w=5 was not seen in training"):
        pipeline(0, guidance_scale=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipeline(0, guidance_scale=1.7)
        pipeline(guidance_scale=1)
    for asked in ({}, {"class_labels": [0, -1]}, {"guidance_scale": 1.5}):
        with pytest.warns(UserWarning, match="w=1.5 was not seen in training without a class; take guidance_scale=1"):
            pipeline(**asked)


def test_the_scheduler_by_itself() -> None:
    scheduler = TVMatchScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [1, 0.75, 0.5, 0.25]
    assert scheduler.timestep_ends.tolist() == [0.75, 0.5, 0.25, 0]
    x, v = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(scheduler.step(v, 0.5, x).prev_sample, x - 0.25 * v)
    noisy = scheduler.add_noise(x, v, torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(noisy, torch.stack([v[0], 0.75 * x[1] + 0.25 * v[1]]))
    with pytest.raises(ValueError, match=r"timestep must be one of \[1.0, 0.75, 0.5, 0.25\], got 0.3"):
        scheduler.step(v, 0.3, x)
    with pytest.raises(ValueError, match="method must be jump, euler or consistency, got 'fast'"):
        TVMatchScheduler("fast")


def test_pickles_are_never_read(pipeline: TVMatchPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.rglob("*.bin"))
    with pytest.raises(OSError, match="safetensors"):
        TVMatchPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="would read a pickle"):
        TVMatchTransformer.from_pretrained(tmp_path / "transformer", use_safetensors=False)


def test_a_transformer_of_a_later_version_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the transformer's config.json describes a network that this version does not"
    ):
        TVMatchTransformer({"image_size": 4, "rotary": True})


def test_numbers_of_numpy_are_whole_numbers(pipeline: TVMatchPipeline) -> None:
    ours = pipeline("bee", np.int64(2), np.int64(3), generator=seeded(), output_type="latent").images
    assert torch.equal(ours, pipeline("bee", 2, 3, generator=seeded(), output_type="latent").images)
