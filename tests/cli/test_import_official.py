import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.support import assert_one_line, tvmatch
from tests.integrations.official_pickles import HOSTILE, SNAPSHOT, dump, module_tree
from tests.integrations.test_official import load, under
from tvmatch.data.latent_space import LatentSpace
from tvmatch.integrations.snapshot import read_snapshot
from tvmatch.networks.embeddings import grid_positions
from tvmatch.sampling import draw
from tvmatch.training.trained import load_run

CODEC = Path(__file__).parents[1] / "data" / "taef2"


@pytest.fixture
def model(tmp_path: Path, capsys: pytest.CaptureFixture) -> Path:
    out = tmp_path / "models" / "official"
    answer = tvmatch(capsys, "import-official", SNAPSHOT, out)
    assert (answer.code, answer.out, answer.err) == (0, f"{out}\n", "")
    return out


def test_the_model_gives_the_outputs_of_the_official_code(model: Path) -> None:
    tensors, _ = load("a")
    data = under(tensors, "data.")
    trained = load_run(model)
    arguments = [data[name].float() for name in ("x_t", "t", "s")] + [data["label"], data["w"].float()]
    x_s, df_ds = trained.flow.terminal_velocity(*arguments)
    for ours, theirs in ((x_s, data["f_plus_x"]), (df_ds, data["df_ds"])):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 2e-6
    assert (trained.w, trained.nfe, trained.flow.scaled) == (2.0, 1, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_snapshot_of_another_floating_type(dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tensors = {name: value.to(dtype) for name, value in read_snapshot(SNAPSHOT).tensors.items()}
    snapshot, out = tmp_path / "x.pkl", tmp_path / "out"
    snapshot.write_bytes(dump({"ema": module_tree(tensors, do_scale_param=True)}))
    assert tvmatch(capsys, "import-official", snapshot, out).code == 0
    network = load_run(out).flow.network
    assert torch.equal(network.final.linear.bias, tensors["final_layer.linear.bias"].float())
    assert torch.equal(network.positions, grid_positions(32, 4, 4).float())
    tensors["pos_embed"] = tensors["pos_embed"].roll(1, 1)
    snapshot.write_bytes(dump({"ema": module_tree(tensors, do_scale_param=True)}))
    assert_one_line(tvmatch(capsys, "import-official", snapshot, tmp_path / "other"), "pos_embed differs")


def test_an_ordinary_model_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "x.npz"
    answer = tvmatch(capsys, "sample", model, "--count", 12, "--class", 3, "--out", out)
    assert answer.code == 0
    assert "the latents themselves are written" in answer.err
    with np.load(out) as arrays:
        assert (arrays["latents"].shape, arrays["latents"].dtype) == ((12, 4, 8, 8), np.float32)
        assert arrays["labels"].tolist() == [3] * 12
    answer = tvmatch(capsys, "sample", model, "--count", 2)
    assert answer.out == f"{model / 'drawn.png'}\n"
    assert "the pictures are the first of 4 channels, cut to [-1, 1], in grey. Give --out NAME.npz" in answer.err
    answer = tvmatch(capsys, "sample", model, "--codec", "taef2")  # their mean and deviation were given to nobody
    assert_one_line(answer, "--codec taef2: this run draws latents whose mean and deviation it does not know")
    assert tvmatch(capsys, "export", model, "--out", tmp_path / "w.safetensors").code == 0
    assert load_run(tmp_path / "w.safetensors").w == 2.0
    assert_one_line(tvmatch(capsys, "evaluate", model), "was imported without data to compare with; import it again")
    assert_one_line(tvmatch(capsys, "train", "--run", model), "already holds a run with")


def test_defaults_for_w_and_calls(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = tmp_path / "model"
    options = ("--guidance", "1:3", "--w", 1.75, "--nfe", 4)
    assert tvmatch(capsys, "import-official", SNAPSHOT, model, *options).code == 0
    trained = load_run(model)
    assert (trained.w, trained.nfe, trained.guidance) == (1.75, 4, "1:3")
    drawn = []
    for index, asked in enumerate(([], ["--nfe", 4, "--w", 1.75], ["--nfe", 1], ["--w", 2])):
        out = tmp_path / f"{index}.npz"
        assert tvmatch(capsys, "sample", model, "--count", 2, "--out", out, *asked).code == 0
        drawn.append(np.load(out)["latents"])
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[3])


def test_evaluated_against_its_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A snapshot of a network that draws pictures: 3 channels, 10 classes."""
    tensors = dict(read_snapshot(SNAPSHOT).tensors)
    tensors["x_embedder.proj.weight"] = tensors["x_embedder.proj.weight"][:, :3].clone()
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        tensors[name] = tensors[name][:12].clone()
    snapshot, data, model = tmp_path / "x.pkl", tmp_path / "data.npz", tmp_path / "model"
    snapshot.write_bytes(dump({"net": module_tree(tensors, ("blocks.0",), do_scale_param=True)}))
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez(data, images=images, labels=np.arange(20) % 10)
    assert tvmatch(capsys, "import-official", snapshot, model, "--data", data).code == 0
    answer = tvmatch(capsys, "evaluate", model, "--nfe", 1, "--samples", 20)
    assert answer.code == 0
    assert answer.err.startswith("tvmatch evaluate: warning: 20 samples give a covariance of rank 19 at most")
    assert "20 pictures give a covariance of rank 19 at most" in answer.err
    assert answer.err.count("warning") == 2
    assert tvmatch(capsys, "sample", model, "--count", 3).err == ""
    np.savez(data, images=images, labels=np.arange(20) % 5)
    answer = tvmatch(capsys, "import-official", snapshot, tmp_path / "other", "--data", data)
    assert_one_line(answer, "holds 5 classes of shape [3, 8, 8]; the network draws 10 classes")
    assert not (tmp_path / "other").exists()


def test_latents_of_a_codec(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    class FourChannels:
        spec, hash, channels, factor = "vae", "abc", 4, 8

    monkeypatch.setattr("tvmatch.integrations.importing.open_codec", lambda _: FourChannels())
    numbers = ("--mean", 1, 2, 3, 4, "--deviation", 5, 6, 7)
    command = ("import-official", SNAPSHOT, tmp_path / "model", "--codec", "vae", *numbers)
    assert_one_line(tvmatch(capsys, *command), "deviation needs one number a channel, 4; got 3")
    assert tvmatch(capsys, *command, 8).code == 0
    space = load_run(tmp_path / "model").latent_space
    assert (space.codec, space.codec_hash, space.shape, space.image_size) == ("vae", "abc", (4, 8, 8), 64)
    assert (space.mean, space.deviation) == ((1, 2, 3, 4), (5, 6, 7, 8))
    FourChannels.channels = 16
    assert_one_line(
        tvmatch(capsys, "import-official", SNAPSHOT, tmp_path / "x", *command[3:], 8),
        "of 16 channels; the network draws 4",
    )


def test_models_of_latents_are_evaluated_in_latents(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against data that are its own samples, the distance is zero; of other pictures of them it is not."""
    model = tmp_path / "model"
    assert tvmatch(capsys, "import-official", SNAPSHOT, tmp_path / "plain").code == 0
    drawn = draw(load_run(tmp_path / "plain").flow, torch.arange(600) % 10, 2.0, 1).numpy()

    class Latents:
        shape, num_classes, class_names, fingerprint = (4, 8, 8), 10, tuple("abcdefghij"), "x"
        latent_space = LatentSpace("vae", "abc", (4, 8, 8), 64, (0.0,) * 4, (1.0,) * 4)
        labels = np.arange(len(drawn)) % 10

        def close(self) -> None:
            pass

        def __len__(self) -> int:
            return len(drawn)

        def batch(self, indices: np.ndarray) -> np.ndarray:
            return drawn[indices] * factor

    factor = 1.0
    for module in ("tvmatch.integrations.importing", "tvmatch.metrics.training_data"):
        monkeypatch.setattr(f"{module}.open_source", lambda *_: Latents())
    assert tvmatch(capsys, "import-official", SNAPSHOT, model, "--data", "latents").code == 0
    distances = []
    for factor in (1.0, 1.1):  # noqa: B007 (Latents.batch uses it)
        assert tvmatch(capsys, "evaluate", model, "--nfe", 1, "--samples", 600).code == 0
        distances.append(json.loads((model / "evaluation.json").read_text())["rows"][0]["frechet"])
    assert abs(distances[0]) < 1e-3 * distances[1]


def test_tensors_alone_need_to_be_told_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tensors = {f"_orig_mod.{name}": value for name, value in read_snapshot(SNAPSHOT).tensors.items()}
    snapshot, out = tmp_path / "x.pkl", tmp_path / "out"
    snapshot.write_bytes(dump({"ema": tensors}))
    assert_one_line(tvmatch(capsys, "import-official", snapshot, out), "does not say do_scale_param; say --scaled")
    answer = tvmatch(capsys, "import-official", snapshot, out, "--scaled", False)
    assert answer.code == 0
    assert "what it does not say is taken from the paper" in answer.err
    assert load_run(out).flow.scaled is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_resolution": 16}, "says img_resolution=16, and its tensors resolution=8"),
        ({"label_dim": 1000}, "says label_dim=1000, and its tensors num_classes=10"),
        ({"num_heads": 2}, "says num_heads=2"),
        ({"do_scale_param": 1}, "says do_scale_param=1, which is not True or False"),
        ({"do_mod_norm": 0}, "says do_mod_norm=0, which is not True or False"),
        ("norm", "does not say num_heads, and no q_norm in it tells"),
        ("final_layer.linear.bias", "lack final_layer.linear.bias"),
        ("nan", "hold NaN or infinity"),
        ("extra", "unknown official tensors: extra"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture, change: dict | str, message: str) -> None:
    tensors = dict(read_snapshot(SNAPSHOT).tensors)
    if change == "nan":
        tensors["final_layer.linear.bias"] = torch.full((16,), torch.nan)
    elif change == "extra":
        tensors["extra"] = torch.zeros(1)
    elif change == "norm":
        tensors = {name: value for name, value in tensors.items() if "q_norm" not in name and "k_norm" not in name}
    elif isinstance(change, str):
        tensors.pop(change)
    values = {"do_scale_param": True} | (change if isinstance(change, dict) else {})
    path = tmp_path / "x.pkl"
    path.write_bytes(dump({"net": module_tree(tensors, **values)}))
    assert_one_line(tvmatch(capsys, "import-official", path, tmp_path / "out"), message)
    assert [found.name for found in tmp_path.iterdir()] == ["x.pkl"]


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "persistent id", "a shape that lies", "deep tuples"])
def test_hostile_snapshots_leave_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    (tmp_path / "x.pkl").write_bytes(content)
    assert_one_line(tvmatch(capsys, "import-official", "x.pkl", "new/out"), message)
    assert [found.name for found in tmp_path.iterdir()] == ["x.pkl"]


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    for options, message in (
        (("--nfe", 0), "nfe must be at least 1, got 0"),
        (("--w", 0), "w must be positive and finite"),
        (("--guidance", "much"), "much"),
        (("--scaled", False), "says do_scale_param=True; leave --scaled out"),
        (("--mean", 1), "belong to a --codec"),
        (("--codec", CODEC), "--codec needs --mean and --deviation, 4 numbers each"),
        (("--data", tmp_path / "nowhere"), "nowhere"),
    ):
        assert_one_line(tvmatch(capsys, "import-official", SNAPSHOT, out, *options), message)
    assert_one_line(tvmatch(capsys, "import-official", tmp_path / "x.pkl", out), "No such file")
    assert list(tmp_path.iterdir()) == []

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        answer = tvmatch(capsys, "import-official", SNAPSHOT, out)
        assert answer.code == 2
        assert "No space left on device" in answer.err
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    assert_one_line(tvmatch(capsys, "import-official", SNAPSHOT, out), "exists; choose a new folder")


def test_the_file_itself_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copied = Path(shutil.copy(SNAPSHOT, tmp_path / "s.pkl"))
    assert tvmatch(capsys, "import-official", copied, tmp_path / "out").code == 0
    assert copied.read_bytes() == SNAPSHOT.read_bytes()
