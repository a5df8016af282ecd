"""benchmarks/cifar10_data.py with small stand-ins, by file:// and as files: nothing is downloaded here."""

import io
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tvmatch.data.arrays import npz_source, source_from_arrays
from tvmatch.metrics.features import sha256_of

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)
IMAGES, LABELS = RANDOM.integers(0, 256, (15, 32, 32, 3), np.uint8), RANDOM.integers(0, 10, 15).astype(np.uint8)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator:
    """The program, told of the stand-ins' hashes; what it would fetch lies in `tmp_path`."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cifar10_data

    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        for k in range(5):
            part = slice(3 * k, 3 * k + 3)
            pixels = IMAGES[part].transpose(0, 3, 1, 2).reshape(3, -1)
            content = np.concatenate([LABELS[part, None], pixels], 1).tobytes()
            told = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{k + 1}.bin")
            told.size = len(content)
            tar.addfile(told, io.BytesIO(content))
    (tmp_path / "network.pt").write_bytes(b"a network")
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr(cifar10_data.MEMBER, b"a network")
    monkeypatch.setattr(cifar10_data, "TRAINING", source_from_arrays(IMAGES, LABELS).fingerprint)
    monkeypatch.setattr(cifar10_data, "INCEPTION", sha256_of(tmp_path / "network.pt"))
    yield cifar10_data
    sys.modules.pop("cifar10_data", None)


def run(data, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["cifar10_data.py", *map(str, arguments)])
    data.main()


@pytest.mark.parametrize("network", ["some.whl", "network.pt"])
def test_pictures_and_network_from_urls_and_files(data, monkeypatch, tmp_path: Path, network: str) -> None:
    cifar = (tmp_path / "cifar.tar.gz").as_uri()
    run(data, monkeypatch, tmp_path / "out", "--cifar", cifar, "--network", tmp_path / network)
    source = npz_source(tmp_path / "out" / "cifar10_train.npz")
    assert np.array_equal(source.images, IMAGES)
    assert np.array_equal(source.labels, LABELS)
    assert (tmp_path / "out" / "inception.pt").read_bytes() == b"a network"
    run(data, monkeypatch, tmp_path / "out", "--cifar", "none", "--network", "none")  # both are there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "none.pt"], "none.pt: there is no such file"),
        (["--network", "network.pt", "--cifar", "network.pt"], "network.pt is not the binary version of CIFAR-10"),
        (["--network", "network.pt", "--cifar", "file:///none.tar.gz"], r"cannot be fetched .*\. Fetch it yourself"),
        (["--network", "other.pt"], r"other.pt has a network of SHA-256 \w{64}; the figures are of \w{64}"),
        (["--network", "network.pt", "--cifar", "changed"], "holds 15 images of SHA-256 .* It is not CIFAR-10, or was"),
    ],
)
def test_what_is_something_else_is_refused_in_one_line(
    data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.pt").write_bytes(b"another network")
    if options[-1] == "changed":
        options = [*options[:-1], "cifar.tar.gz"]
        monkeypatch.setattr(data, "TRAINING", "0" * 64)
    with pytest.raises(SystemExit, match=message) as refusal:
        run(data, monkeypatch, "out", *options)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / "cifar10_train.npz").exists()


def test_hashes_are_those_of_the_committed_evaluations() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from cifar10_data import INCEPTION, TRAINING
    finally:
        sys.path.pop(0)
    found = sorted((ROOT / "benchmarks" / "results" / "cifar10").glob("*/evaluation*.json"))
    assert found
    for path in found:
        assert f'"fingerprint": "{TRAINING}"' in path.read_text()
        assert f'"sha256": "{INCEPTION}"' in path.read_text()
