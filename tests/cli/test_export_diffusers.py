"""`tvmatch export RUN --to diffusers`: the folder, its card, and what diffusers makes of it."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tests.cli.support import assert_one_line, tvmatch
from tests.conftest import randomise
from tests.integrations.official_pickles import SNAPSHOT
from tvmatch.cli import main
from tvmatch.data.codecs import open_codec
from tvmatch.data.latent_space import LatentSpace, picture_maker
from tvmatch.flow_map import FlowMap
from tvmatch.integrations.diffusers import TVMatchPipeline
from tvmatch.integrations.diffusers import export as exporting
from tvmatch.integrations.diffusers.card import CardFacts, facts_of, figures_of
from tvmatch.metrics.features import sha256_of
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.sampling import sample, seeded_noise
from tvmatch.training.trained import TrainedRun, load_run

CODEC = Path(__file__).parents[1] / "data" / "taef2"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("diffusers") / "new" / "model v1.5"
    assert main(["evaluate", str(run), "--nfe", "1", "2", "--samples", "6"]) == 0
    options = ["--license", "cc-by-4.0", "--data-license", "of our own"]
    assert main(["export", str(run), "--to", "diffusers", "--out", str(out), *options]) == 0
    (run / "evaluation.json").rename(out.parent / "evaluation.json")  # the run is shared
    return out


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_the_parts_and_their_files(exported: Path) -> None:
    files = sorted(str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "model_index.json",
        "pipeline.py",
        "samples.png",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    modes = {(exported / name).stat().st_mode for name in files}
    assert len(modes) == 1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_samples_are_those_of_the_run(run: Path, exported: Path, steps: int) -> None:
    pipeline, trained = TVMatchPipeline.from_pretrained(exported), load_run(run)
    noise, label = seeded_noise(3, range(4), (3, 8, 8)), [2, 0, 1, -1]
    ours = pipeline(label, 1, steps, latents=noise, output_type="latent").images
    theirs = sample(trained.flow, noise, torch.tensor(label), trained.w, steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert steps != 1 or torch.equal(ours, theirs)


def test_saved_and_loaded_again_to_the_same_bits(exported: Path, tmp_path: Path) -> None:
    first = TVMatchPipeline.from_pretrained(exported)
    first.save_pretrained(tmp_path / "again")
    again = TVMatchPipeline.from_pretrained(tmp_path / "again")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "again", custom_pipeline="pipeline", trust_remote_code=True)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(exported / weights), load_file(tmp_path / "again" / weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    drawn = [one(["bee", "wasp"], 2, 3, generator=seeded()).images for one in (first, again, plain)]
    assert isinstance(plain, TVMatchPipeline)
    for other in drawn[1:]:
        assert [image.tobytes() for image in other] == [image.tobytes() for image in drawn[0]]
    assert len({image.tobytes() for image in drawn[0]}) == 4


def test_the_card_says_what_the_run_says(run: Path, exported: Path) -> None:
    text = (exported / "README.md").read_text()
    said = json.loads((exported.parent / "evaluation.json").read_text())
    assert "| nfe | w | frechet | samples |" in text
    for row in said["rows"]:
        assert f"| {row['nfe']} | {row['w']:.4g} | {row['frechet']:.4g} | 6 |\n" in text
    assert len(said["remarks"]) == 2
    for remark in said["remarks"]:
        assert f"- {remark}\n" in text
    for piece in (
        'license: "cc-by-4.0"',
        "- Weights: cc-by-4.0.",
        "- Training data: of our own.",
        "# run v1.5",
        "| training steps | 16 (average of weights: decay 0.9) |",
        "| guidance scales in training | 1.5; 1.5 by default |",
        "| classes | 3: bee, wasp, ant [x] |",
        "| training data | data.npz |",
        'pipeline(class_labels="bee", num_inference_steps=1)',
    ):
        assert piece in text, piece
    assert str(run.parent) not in text


def test_nothing_is_invented_for_the_card(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    answer = tvmatch(capsys, "export", run, "--to", "diffusers", "--out", out)
    assert answer.code == 0
    assert answer.out.startswith(f"{out}\n")
    assert "the card has no figures: run `tvmatch evaluate" in answer.err
    assert "give --license and --data-license to state it" in answer.err
    text = (out / "README.md").read_text()
    assert "license:" not in text
    assert text.count("not stated; ask whoever trained it") == 2
    assert "None: this checkpoint was exported before `tvmatch evaluate` had measured it as the pipeline draws." in text


def test_figures_of_another_checkpoint_are_left_out(run: Path, tmp_path: Path) -> None:
    trained = load_run(run)
    for checkpoint, ema in ((trained.checkpoint, 0.5), ("step_00000001", trained.ema)):
        said = {"checkpoint": str(checkpoint), "ema": ema, "rows": [{"nfe": 1, "frechet": 0.5}]}
        (tmp_path / "evaluation.json").write_text(json.dumps(said))
        assert figures_of(tmp_path, trained) == ((), ())
    # what `evaluate --features` writes: the checkpoint with its hash, and figures that say what they depend on
    said = {
        "checkpoint": {"path": str(trained.checkpoint), "ema": trained.ema, "sha256": sha256_of(trained.checkpoint)},
        "method": "jump",
        "features": {"file": "inception.pt"},
        "statistics": {"data": "/home/somebody/cifar10.npz"},
        "samples": 50,
        "remarks": ["/home/somebody/cifar10.npz is of hf:somebody/cifar10, not of what /mnt/a/run was trained on."],
        "rows": [{"nfe": 1, "w": 1.5, "seeds": [0], "frechet": 12.346, "frechet_over_seeds": 0.1, "seconds": 3.0}],
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(said))
    figures = {"calls": "1", "w": "1.5", "Frechet": "12.35 ± 0.10"}
    pins = {"features": "inception.pt", "against": "cifar10.npz", "samples": 50}
    remark = "cifar10.npz is of hf:somebody/cifar10, not of what run was trained on."  # without this machine's folders
    assert figures_of(tmp_path, trained) == ((figures | pins,), (remark,))
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match="is not what `tvmatch evaluate` writes"):
        figures_of(tmp_path, trained)


def test_figures_of_other_samples_or_weights_are_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Those of another method, and those of a checkpoint of the same name that was replaced since."""
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "evaluation.json").unlink(missing_ok=True)
    trained = load_run(copied)
    evaluate = ("evaluate", copied, "--nfe", 1, "--samples", 6)
    assert tvmatch(capsys, *evaluate, "--method", "euler").code == 0
    assert figures_of(copied, trained) == ((), ())
    (copied / "evaluation.json").unlink()
    assert tvmatch(capsys, *evaluate).code == 0
    (row,), remarks = figures_of(copied, trained)
    assert (row["nfe"], row["samples"], len(remarks)) == (1, 6, 2)
    part = next(path for path in sorted(trained.checkpoint.rglob("*")) if path.suffix == ".safetensors")
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert figures_of(copied, trained) == ((), ())


def test_the_card_of_an_imported_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What import-official fills in is not told as if it were known, and the example runs: a model of latents without a
    codec gives latents only."""
    model, file = tmp_path / "model", tmp_path / "weights.safetensors"
    assert tvmatch(capsys, "import-official", SNAPSHOT, model).code == 0
    assert tvmatch(capsys, "export", model, "--to", "diffusers").code == 0
    text = (model / "diffusers" / "README.md").read_text()
    assert "Imported from a snapshot of the official implementation and exported with tvmatch." in text
    assert "Trained" not in text
    assert "| training steps | not known, nor which average of weights this is |" in text
    assert "0.9999" not in text
    assert "a snapshot of the official implementation, whose licence applies" in text
    (call,) = [line for line in text.splitlines() if line.startswith("images = ")]
    found: dict[str, Any] = {"pipeline": TVMatchPipeline.from_pretrained(model / "diffusers")}
    exec(call, found)
    assert found["images"].shape == (1, 4, 8, 8)
    assert tvmatch(capsys, "export", model, "--out", file).code == 0  # the mark goes with the weights
    assert facts_of(file, load_run(file), None, None) == CardFacts("weights", imported=True)


def test_a_full_disk_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)  # diffusers takes it from there
    answer = tvmatch(capsys, "export", run, "--to", "diffusers", "--out", tmp_path / "out")
    assert_one_line(answer, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_latents_takes_its_codec_along(run: Path, tmp_path: Path) -> None:
    """TAEF2, which diffusers' own class cannot hold; pictures are those of `tvmatch sample`."""
    codec = open_codec(str(CODEC))
    trained = latent_model(run, codec.spec, codec.hash)
    out = tmp_path / "latents"
    exporting.export_diffusers(trained, out, CardFacts("latents"))
    assert sorted(path.name for path in (out / "vae").iterdir()) == [
        "LICENSE",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert "| codec | taef2 |" in (out / "README.md").read_text()
    assert (
        "Draws pictures of 16 pixels a side, as latents of 32 x 2 x 2, in 1 network call"
        in (out / "README.md").read_text()
    )
    assert str(CODEC.parent) not in (out / "README.md").read_text()
    pipeline, noise = TVMatchPipeline.from_pretrained(out), seeded_noise(0, range(2), (32, 2, 2))
    drawn = np.stack([np.asarray(image) for image in pipeline([0, 1], latents=noise).images])
    expected = picture_maker(trained.latent_space, "cpu")(sample(trained.flow, noise, torch.tensor([0, 1]), trained.w))
    assert np.array_equal(drawn, expected)
    assert drawn.shape == (2, 16, 16, 3)
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(pipeline.vae.encode(picture).latents, codec.encode(picture).mean)


def test_a_codec_in_a_pickle_is_not_read(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class is diffusers' own, which would read one where there are no safetensors."""
    folder = tmp_path / "model"
    options = {
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "norm_num_groups": 2,
    }
    codec = AutoencoderKL(block_out_channels=(4,), latent_channels=3, **options)
    pipeline = TVMatchPipeline.from_pretrained(exported)
    TVMatchPipeline(pipeline.transformer, pipeline.scheduler, vae=codec).save_pretrained(folder)
    assert TVMatchPipeline.from_pretrained(folder).vae is not None
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(codec.state_dict(), folder / "vae" / "diffusion_pytorch_model.bin")

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", read)
    with pytest.raises(OSError, match="safetensors"):
        TVMatchPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="use_safetensors=False would read a pickle"):
        TVMatchPipeline.from_pretrained(folder, use_safetensors=False)


def latent_model(run: Path, spec: str, codec_hash: str) -> TrainedRun:
    """The run's words around a network that draws latents."""
    torch.manual_seed(0)
    network = DiT(DiTConfig(2, 32, 3, patch_size=1, hidden_size=16, depth=1, num_heads=2))
    space = LatentSpace(spec, codec_hash, (32, 2, 2), 16, (0.1,) * 32, (0.7,) * 32)
    flow = FlowMap(randomise(network)).requires_grad_(False).eval()
    return dataclasses.replace(load_run(run), flow=flow, latent_space=space)


def test_what_comes_back_otherwise_is_not_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = TVMatchPipeline.from_pretrained

    def spoilt(*args: object, **kwargs: object) -> TVMatchPipeline:
        pipeline = load(*args, **kwargs)
        nn.init.constant_(pipeline.transformer.flow.network.final.linear.bias, 1e-7)
        return pipeline

    with monkeypatch.context() as patch:
        patch.setattr(TVMatchPipeline, "from_pretrained", spoilt)
        answer = tvmatch(capsys, "export", run, "--to", "diffusers", "--out", tmp_path / "out")
    assert_one_line(answer, "came back otherwise than they were written")
    scheduler = exporting.TVMatchScheduler
    monkeypatch.setattr(exporting, "TVMatchScheduler", lambda _: scheduler("euler"))
    answer = tvmatch(capsys, "export", run, "--to", "diffusers", "--out", tmp_path / "out")
    assert_one_line(answer, "samples differ from the run's by")
    assert list(tmp_path.iterdir()) == []


def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    export = ("export", run, "--to", "diffusers", "--out", tmp_path / "out")
    assert_one_line(tvmatch(capsys, "export", run, "--license", "mit"), "--license mit belongs to --to diffusers")
    assert_one_line(tvmatch(capsys, *export, "--weights", "int8"), "--weights int8 belongs to --to onnx")
    assert_one_line(tvmatch(capsys, *export[:-1], tmp_path), "exists; give the name of a new folder")
    assert_one_line(tvmatch(capsys, *export, "--codec", "pixels"), "draws pictures, not latents; leave it out")
    assert_one_line(tvmatch(capsys, *export, "--license", " "), "--license must be one line")
    assert_one_line(tvmatch(capsys, "export", tmp_path, *export[2:]), "not a run of tvmatch")
    for module in [name for name in sys.modules if name.startswith("tvmatch.integrations.diffusers")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert_one_line(tvmatch(capsys, *export), "pip install 'tvmatch[export]'")
    assert list(tmp_path.iterdir()) == []


def test_an_exported_file_has_a_card_of_its_own(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(run), "--out", str(file)]) == 0
    assert facts_of(file, load_run(file), None, None) == CardFacts("weights")
