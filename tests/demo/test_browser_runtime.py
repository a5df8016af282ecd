"""Where onnxruntime-web comes from. Its files are stood in for by small ones, and npm by a script."""

import hashlib
import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest

from tvmatch.demo import browser_runtime
from tvmatch.demo.browser_runtime import RuntimeFilesError, cache_folder, licence_files, runtime_files

CONTENT = {name: f"the content of {name}".encode() for name in browser_runtime.FILES}


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(browser_runtime, "FILES", digests)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def package(content: dict[str, bytes] = CONTENT) -> dict[str, bytes]:
    return {f"package/dist/{name}": value for name, value in content.items()} | {"package/../../evil": b"x"}


def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize("place", [".", "dist", "package/dist", "onnxruntime-web/dist"])
def test_from_a_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name, content in CONTENT.items():
        (tmp_path / place / name).write_bytes(content)
    assert runtime_files(tmp_path) == CONTENT


def test_from_an_archive_of_which_nothing_else_is_taken(tmp_path: Path) -> None:
    path = archive(tmp_path / "it.tgz", package())
    before = set(tmp_path.rglob("*"))
    assert runtime_files(path) == CONTENT
    assert set(tmp_path.rglob("*")) == before


def test_by_npm_once_and_then_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "it.tgz", package())
    fake_npm(tmp_path, monkeypatch, f'echo "$@" >> {tmp_path}/asked; cp {path} onnxruntime-web-1.30.0.tgz')
    assert runtime_files() == CONTENT
    assert (tmp_path / "asked").read_text() == "pack onnxruntime-web@1.30.0 --silent\n"
    assert sorted(each.name for each in cache_folder().iterdir()) == sorted(CONTENT)
    assert runtime_files() == CONTENT
    assert (tmp_path / "asked").read_text().count("\n") == 1
    (cache_folder() / "ort.wasm.min.js").write_bytes(b"spoilt")
    with pytest.raises(RuntimeFilesError, match=r"\(delete it to fetch it anew\): ort.wasm.min.js is not that of"):
        runtime_files()


def test_what_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("no archive")
    short = archive(tmp_path / "short.tgz", {"package/dist/ort.wasm.min.js": CONTENT["ort.wasm.min.js"]})
    spoilt = archive(tmp_path / "spoilt.tgz", package(CONTENT | {"ort.wasm.min.js": b"other"}))
    noise = random.Random(0).randbytes(100_000)  # which cannot be compressed, so that its blocks are large
    damaged = archive(tmp_path / "damaged.tgz", package(CONTENT | {"ort.wasm.min.js": noise}))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:40_000] + b"\xff" * 40_000 + content[80_000:])
    for path, message in (
        (damaged, "is no folder and no archive"),
        (tmp_path / "text", "is no folder and no archive of onnxruntime-web 1.30.0"),
        (tmp_path, "ort-wasm-simd-threaded.mjs, ort-wasm-simd-threaded.wasm, ort.wasm.min.js of .* is missing"),
        (short, "ort-wasm-simd-threaded.mjs, ort-wasm-simd-threaded.wasm of onnxruntime-web 1.30.0 is missing"),
        (spoilt, "ort.wasm.min.js is not that of onnxruntime-web 1.30.0 "),
    ):
        with pytest.raises(RuntimeFilesError, match=message):
            runtime_files(path)
    with pytest.raises(FileNotFoundError):
        runtime_files(tmp_path / "nowhere")
    monkeypatch.setattr(browser_runtime, "LARGEST", 5)
    with pytest.raises(RuntimeFilesError, match="is missing"):
        runtime_files(archive(tmp_path / "large.tgz", package()))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no network' >&2; exit 1", "failed: no network Where npm works, run `npm pack onnxruntime-web@1.30.0`"),
        ("exit 0", "left 0 archives"),
        ("echo x > a.tgz", "is no folder and no archive"),
    ],
)
def test_npm_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake_npm(tmp_path, monkeypatch, script)
    with pytest.raises(RuntimeFilesError, match=message):
        runtime_files()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(RuntimeFilesError, match=r"npm, which is not installed\. Where npm works"):
        runtime_files()


def test_an_npm_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 600)

    fake_npm(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(RuntimeFilesError, match="did not end in 10 minutes"):
        runtime_files()


def test_the_licence_comes_along() -> None:
    pytest.importorskip("onnxruntime")
    licences = licence_files()
    assert b"MIT License" in licences["LICENSE"]
    assert set(licences) == {"LICENSE", "ThirdPartyNotices.txt"}
