"""`tvmatch export RUN --to onnx`, in onnxruntime against PyTorch. Tracing takes seconds: it is done once."""

import contextlib
import itertools
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.cli.support import assert_one_line, tvmatch
from tests.conftest import randomise
from tvmatch.cli import main
from tvmatch.flow_map import FlowMap
from tvmatch.integrations import onnx as exporting
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.sampling import euler, sample, seeded_noise
from tvmatch.times import uniform_grid
from tvmatch.training.trained import TrainedRun, load_run


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "new" / "model.onnx"
    assert main(["export", str(run), "--to", "onnx", "--out", str(out)]) == 0
    return out


@pytest.fixture
def traced(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of this test take their graph from the one that was traced."""
    monkeypatch.setattr(exporting, "trace", lambda _: onnx.load(exported))


def draw(file: Path, noise: np.ndarray, classes: list[int], w: float | np.ndarray, calls: int) -> np.ndarray:
    """What users write: a loop over the times. `w` is one for all or one for each."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x, count = noise, len(noise)
    for t, s in itertools.pairwise(uniform_grid(calls)):
        x = session.run(
            None,
            {
                "x": x,
                "t": np.full(count, t, np.float32),
                "s": np.full(count, s, np.float32),
                "class": np.array(classes, np.int64),
                "w": np.full(count, w, np.float32),
            },
        )[0]
    return x


@pytest.mark.parametrize("calls", [1, 2, 5])
@pytest.mark.parametrize("classes", [[0], [2, -1, 1, 0, 2, 2, 1]])
def test_any_number_of_calls_and_any_batch(run: Path, exported: Path, calls: int, classes: list[int]) -> None:
    noise = seeded_noise(5, range(len(classes)), (3, 8, 8))
    ours = draw(exported, noise.numpy(), classes, 2.5, calls)
    theirs = sample(load_run(run).flow, noise, torch.tensor(classes), 2.5, calls)
    torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=1e-5)


def test_what_the_file_says_of_itself(run: Path, exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    said = json.loads({entry.key: entry.value for entry in model.metadata_props}["tvmatch"])
    assert (said["class_names"], said["w"], said["nfe"], said["method"]) == (["bee", "wasp", "ant [x]"], 1.5, 1, "jump")
    assert [(one.name, one.type.tensor_type.shape.dim[0].dim_param) for one in model.graph.input] == [
        (name, "batch") for name in ("x", "t", "s", "class", "w")
    ]
    assert str(Path(__file__).parents[2]) not in exported.read_bytes().decode("latin-1")


@pytest.mark.usefixtures("traced")
def test_smaller_weights(run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes, classes = [exported.stat().st_size], [0, 1, 2]
    noise = seeded_noise(0, range(3), (3, 8, 8))
    theirs = sample(load_run(run).flow, noise, torch.tensor(classes), 1.5)
    for weights, tolerance in (("float16", 2e-3), ("int8", 0.05)):
        out = tmp_path / f"{weights}.onnx"
        answer = tvmatch(capsys, "export", run, "--to", "onnx", "--weights", weights, "--out", out)
        assert answer.code == 0
        assert answer.out.startswith(
            f"{out}\n{out.stat().st_size:,} bytes ({weights} weights); differs from PyTorch by "
        )
        sizes.append(out.stat().st_size)
        ours = torch.from_numpy(draw(out, noise.numpy(), classes, 1.5, 1))
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
        assert not torch.equal(ours, theirs)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.usefixtures("traced")
def test_a_graph_that_computes_otherwise_is_not_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: Any, _: str) -> None:
        for index, one in enumerate(model.graph.initializer):
            value = onnx.numpy_helper.to_array(one)
            if value.ndim == 2:
                model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(value * 1.01, one.name))

    monkeypatch.setattr(exporting, "store_weights", spoil)
    out = tmp_path / "model.onnx"
    out.write_text("before")
    assert_one_line(tvmatch(capsys, "export", run, "--to", "onnx", "--out", out), "nothing was written")
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("fails", [True, False])
def test_an_interrupt_that_the_exporter_catches(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """PyTorch's exporter goes on after it in another way, or tells it as its own failure."""

    def export(*_: object, **__: object) -> SimpleNamespace:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if fails:
            raise RuntimeError("Failed to export the model")
        return SimpleNamespace(model_proto=onnx.ModelProto())

    monkeypatch.setattr(torch.onnx, "export", export)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        answer = tvmatch(capsys, "export", run, "--to", "onnx", "--out", tmp_path / "model.onnx")
        assert (answer.code, answer.err) == (130, "tvmatch export: interrupted\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []


def test_average_and_default_name(run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def export(trained: Any, out: Path, weights: str) -> exporting.OnnxReport:
        asked.append((trained.ema, out, weights))
        return exporting.OnnxReport(1_234_567, 3.21e-7)

    monkeypatch.setattr(exporting, "export_onnx", export)
    answer = tvmatch(capsys, "export", run, "--to", "onnx", "--ema", 0.5)
    assert answer.out == (
        f"{run / 'model.onnx'}\n1,234,567 bytes (float32 weights); differs from PyTorch by 3.2e-07, relative\n"
    )
    assert asked == [(0.5, run / "model.onnx", "float32")]


def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model.onnx"
    assert_one_line(tvmatch(capsys, "export", run, "--weights", "int8"), "--weights int8 belongs to --to onnx")
    assert_one_line(tvmatch(capsys, "export", run, "--to", "onnx", "--out", tmp_path / "x"), "ends in .onnx")
    assert_one_line(tvmatch(capsys, "export", tmp_path, "--to", "onnx"), "not a run of tvmatch")
    monkeypatch.setattr(exporting, "LARGEST", 10_000)
    assert_one_line(tvmatch(capsys, "export", run, "--to", "onnx", "--out", out), "take --weights float16 or int8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_one_line(tvmatch(capsys, "export", run, "--to", "onnx", "--out", out), "pip install 'tvmatch[export]'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("weights", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("int8", 0.05)])
def test_every_sample_has_its_own_class_and_scale(run: Path, tmp_path: Path, weights: str, tolerance: float) -> None:
    """In every kind of weights, in several calls, with batches that the export has not tried."""
    out, flow = tmp_path / "model.onnx", load_run(run).flow
    assert main(["export", str(run), "--to", "onnx", "--weights", weights, "--out", str(out)]) == 0
    for count in (2, 13):
        noise = seeded_noise(count, range(count), (3, 8, 8))
        classes, w = torch.arange(count) % 4 - 1, torch.linspace(0.7, 3, count)
        ours = torch.from_numpy(draw(out, noise.numpy(), classes.tolist(), w.numpy(), 3))
        theirs = sample(flow, noise, classes, w, 3)
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
        other = torch.from_numpy(draw(out, noise.numpy(), classes.tolist(), w.numpy()[::-1], 3))
        assert float((other - theirs).norm() / theirs.norm()) > 3 * float((ours - theirs).norm() / theirs.norm())


def test_a_velocity_without_classes_and_without_scaling(tmp_path: Path) -> None:
    """The other branches of the step, as a graph: Euler steps, no class, output not multiplied by w."""
    shape = DiTConfig(4, 1, 0, patch_size=2, hidden_size=16, depth=1, num_heads=2)
    flow = FlowMap(randomise(DiT(shape)), scaled=False).requires_grad_(False).eval()
    trained = TrainedRun(flow, (), "flow-matching", "1", 1.0, 7, tmp_path, 0.9)
    report = exporting.export_onnx(trained, tmp_path / "model.onnx")
    noise = seeded_noise(0, range(5), (1, 4, 4))
    ours = torch.from_numpy(draw(tmp_path / "model.onnx", noise.numpy(), [-1] * 5, 1.0, 4))
    torch.testing.assert_close(ours, euler(flow, noise, -1, 1.0, 4), rtol=1e-4, atol=1e-5)
    assert 0 <= report.error < 1e-5


@pytest.mark.parametrize("method", ["jump", "euler"])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_exported_function_is_that_of_the_flow_map(run: Path, method: str, scaled: bool) -> None:
    flow = load_run(run).flow
    flow.scaled = scaled
    step = exporting.Step(flow, method)
    arguments = exporting._example(step, 6, 0)
    torch.testing.assert_close(step(*arguments), step.reference(*arguments), rtol=1e-6, atol=1e-6)
    other = exporting.Step(flow, "euler" if method == "jump" else "jump").reference(*arguments)
    assert not torch.allclose(step(*arguments), other, rtol=1e-3)


def test_quantised_numbers_are_within_half_a_step() -> None:
    value = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32) * np.logspace(-3, 3, 30, dtype=np.float32)
    axis, scale, whole = exporting.quantise(value)
    assert (axis, whole.dtype, scale.shape) == (1, np.int8, (30,))
    assert (np.abs(whole * scale - value) <= 0.501 * scale).all()
    assert exporting.quantise(np.zeros((4, 4), np.float32))[2].any() == np.False_


def test_an_exported_file_becomes_a_graph_beside_it(
    run: Path, traced: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "weights.safetensors"
    assert tvmatch(capsys, "export", run, "--out", file).code == 0
    assert tvmatch(capsys, "export", file, "--to", "onnx").code == 0
    assert (tmp_path / "model.onnx").is_file()
    answer = tvmatch(capsys, "export", file, "--to", "onnx", "--out", file / "x.onnx")
    assert_one_line(answer, f"{file} is a file, not a folder; choose another place")
