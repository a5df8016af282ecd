"""onnxruntime-web, the engine of the static page: three files of one version, known by their checksums.

They come from a folder or an archive that is given, from the cache, or by `npm pack`, which keeps to whatever registry
and mirror this machine's npm is set up for. Nothing of the package is run here, and only these files are taken out.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

from tvmatch.files import new_folder

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
FILES = {  # SHA-256; the build with one thread's worth of needs: no WebGPU, no headers for shared memory
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
LARGEST = 64 << 20  # bytes of one file
REMEDY = f"Where npm works, run `npm pack {PACKAGE}@{VERSION}`, and give the .tgz to --runtime."


class RuntimeFilesError(ValueError):
    """The files of onnxruntime-web are not to be had, or are not the ones meant."""


def runtime_files(given: Path | None = None) -> dict[str, bytes]:
    """The contents of FILES by name, each checked: of `given` (a folder or a .tgz), or else of the cache, or of npm."""
    if given is not None:
        return _checked(_read(given), str(given))
    cached = cache_folder()
    if not cached.is_dir():
        files = _by_npm()
        cached.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(cached) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)
    return _checked(_read(cached), f"{cached} (delete it to fetch it anew)")


def licence_files() -> dict[str, bytes]:
    """The licence of ONNX Runtime (MIT) and its notices, from the Python package, which is built of the same source."""
    found = importlib.util.find_spec("onnxruntime")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    missing = [name for name in LICENCES if folder is None or not (folder / name).is_file()]
    if missing:
        raise RuntimeFilesError(
            f"the licence of ONNX Runtime ({', '.join(missing)}) is missing; pip install onnxruntime"
        )
    return {name: (folder / name).read_bytes() for name in LICENCES}


def cache_folder() -> Path:
    """Where the files lie once they were fetched."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tvmatch" / f"{PACKAGE}-{VERSION}"


def _by_npm() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeFilesError(f"{PACKAGE} is fetched by npm, which is not installed. {REMEDY}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"]
        try:
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=600)
        except subprocess.TimeoutExpired as error:
            raise RuntimeFilesError(f"`npm pack {PACKAGE}` did not end in 10 minutes. {REMEDY}") from error
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip() or error.stdout.strip()).splitlines()[:1]
            raise RuntimeFilesError(f"`npm pack {PACKAGE}` failed: {' '.join(said)} {REMEDY}") from error
        packed = list(Path(folder).glob("*.tgz"))
        if len(packed) != 1:
            raise RuntimeFilesError(f"`npm pack {PACKAGE}` left {len(packed)} archives. {REMEDY}")
        return _checked(_read(packed[0]), f"what npm fetched as {PACKAGE} {VERSION}")


def _read(source: Path) -> dict[str, bytes]:
    """Those of FILES that a folder (of the files, or of the package) or an archive holds."""
    if source.is_dir():
        places = [source, source / "dist", source / "package" / "dist", source / PACKAGE / "dist"]
        paths = {name: place / name for place in reversed(places) for name in FILES if (place / name).is_file()}
        return {name: path.read_bytes() for name, path in paths.items() if path.stat().st_size <= LARGEST}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                name = member.name.removeprefix("package/dist/")
                if name in FILES and member.isreg() and member.size <= LARGEST:
                    file = archive.extractfile(member)
                    found[name] = file.read() if file is not None else b""
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise RuntimeFilesError(f"{source} is no folder and no archive of {PACKAGE} {VERSION}. {REMEDY}") from error
    return found


def _checked(files: dict[str, bytes], source: str) -> dict[str, bytes]:
    missing = sorted(set(FILES) - set(files))
    if missing:
        raise RuntimeFilesError(f"{source}: {', '.join(missing)} of {PACKAGE} {VERSION} is missing. {REMEDY}")
    for name, digest in FILES.items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise RuntimeFilesError(
                f"{source}: {name} is not that of {PACKAGE} {VERSION} (its SHA-256 differs). {REMEDY}"
            )
    return files
