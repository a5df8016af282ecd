"""The folder of the static page, with stand-ins for the network and onnxruntime-web."""

import gzip
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import assert_one_line, tvmatch
from tvmatch.data.latent_space import LatentSpace
from tvmatch.demo import static_page
from tvmatch.demo.browser_runtime import FILES
from tvmatch.integrations.onnx import OnnxReport
from tvmatch.training.trained import load_run


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def export(trained: Any, out: Path, weights: str) -> OnnxReport:
        asked.append((trained.ema, weights))
        out.write_bytes(b"model")
        return OnnxReport(5, 1e-3)

    monkeypatch.setattr(static_page, "export_onnx", export)
    monkeypatch.setattr(static_page, "licence_files", lambda: {"LICENSE": b"MIT"})
    monkeypatch.setattr(static_page, "runtime_files", lambda _: {name: name.encode() for name in FILES})
    return asked


def test_the_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, asked: list[tuple[Any, ...]]) -> None:
    out = tmp_path / "new" / "page"
    answer = tvmatch(capsys, "demo", run, "--static", out, "--weights", "float16", "--ema", 0.5)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"{out}\n5 bytes of model, ")
    assert asked == [(0.5, "float16")]
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {
        *("index.html", "page.css", "page.js", "generator.js", "noise.js", "model.onnx", "model.json"),
        *(f"runtime/{name}" for name in ("ort.js", "ort-wasm.js", "ort-wasm.bin", "LICENSE")),
    }
    said = json.loads((out / "model.json").read_text())
    packed = (out / "runtime/ort-wasm.bin").read_bytes()
    assert gzip.decompress(packed) == b"ort-wasm-simd-threaded.wasm"
    assert said == {
        "name": "run v1.5",
        "class_names": ["bee", "wasp", "ant [x]"],
        "data_shape": [3, 8, 8],
        "w": 1.5,
        "w_range": None,
        "method": "jump",
        "calls": 1,
        "model_bytes": 5,
        "runtime": "1.30.0",
        "runtime_bytes": len(packed),
    }
    assert [path.name for path in out.parent.iterdir()] == ["page"]


def test_the_command_that_serves_it_can_be_pasted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "page u 1"
    command = tvmatch(capsys, "demo", run, "--static", out).out.splitlines()[-1]
    assert shlex.split(command)[-3:] == ["--directory", str(out), "8000"]


def test_the_page_names_no_other_server() -> None:
    folder = Path(static_page.__file__).parent / "static"
    assert {path.name for path in folder.iterdir()} == set(static_page.PAGE)
    for path in folder.iterdir():
        assert "://" not in path.read_text(), path


def test_a_model_of_latents_without_a_codec(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    snapshot = Path(__file__).parents[1] / "data" / "official_snapshot_a.pkl"
    assert tvmatch(capsys, "import-official", snapshot, tmp_path / "official").code == 0
    message = "names no codec that makes pictures of them"
    assert_one_line(tvmatch(capsys, "demo", tmp_path / "official"), message)


def test_the_page_needs_its_extra(run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert_one_line(tvmatch(capsys, "demo", run), "gradio is missing; the page needs: pip install 'tvmatch[demo]'")


@pytest.mark.parametrize(("guidance", "w_range"), [("1:3", [1, 3]), ("inverse", [1, 8]), ("2", None)])
def test_the_slider_offers_what_was_trained(run: Path, guidance: str, w_range: list[float] | None) -> None:
    trained = replace(load_run(run), guidance=guidance, objective="flow-matching")
    said = static_page.page_description(trained, "x")
    assert (said["w_range"], said["method"], said["calls"]) == (w_range, "euler", 32)


def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page"
    for options, message in (
        (["--static", tmp_path], "exists; give the name of a new folder"),
        (["--static", out, "--port", 8000], "--port 8000 is of the page that a server answers; leave it out"),
        (["--static", out, "--beside", run], "is of the page that a server answers; leave it out"),
        (["--weights", "int8"], "--weights int8 belongs to --static; leave it out"),
        (["--port", 0], "port must be 1 to 65535, got 0"),
        (["--beside", tmp_path], "not a run of tvmatch"),
        (["--codec", "taef2"], "draws pictures, not latents; leave it out"),
    ):
        assert_one_line(tvmatch(capsys, "demo", run, *options), message)
    assert_one_line(tvmatch(capsys, "demo", tmp_path, "--static", out), "not a run of tvmatch")
    trained = replace(load_run(run), latent_space=LatentSpace("pixels", "x", (3, 8, 8), 8, (0,) * 3, (1,) * 3))
    with pytest.raises(ValueError, match="this run draws latents, and the page has no codec"):
        static_page.write_static_page(trained, "x", out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(static_page, "export_onnx", full)
    assert_one_line(tvmatch(capsys, "demo", run, "--static", out), "No space left on device")
    assert list(tmp_path.iterdir()) == []
