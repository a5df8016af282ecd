"""`tvmatch demo RUN --static OUT`: a folder that any web server serves, and the visitor's browser draws.

index.html page.js generator.js noise.js page.css    of this package
model.onnx model.json                                the run, and what the page must know of it
runtime/                                             onnxruntime-web, and its licence
"""

import gzip
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tvmatch.demo.browser_runtime import VERSION, licence_files, runtime_files
from tvmatch.files import new_folder
from tvmatch.guidance import UniformGuidance, UniformInverseGuidance, parse_guidance
from tvmatch.integrations.onnx import Weights, export_onnx
from tvmatch.training.trained import TrainedRun

PAGE = ("index.html", "page.css", "page.js", "generator.js", "noise.js")
LARGEST_W = 8.0  # that the slider of a run with --guidance inverse offers
EULER_STEPS = 32  # that a run of flow matching starts with


@dataclass(frozen=True)
class StaticPage:
    """What was written: bytes of the model, and of onnxruntime-web as it travels."""

    model: int
    runtime: int


def write_static_page(
    run: TrainedRun, name: str, out: Path, weights: Weights = "int8", runtime: Path | None = None
) -> StaticPage:
    """Write the page into the new folder `out`, which appears when it is complete.

    runtime  onnxruntime-web: a folder, a .tgz, or None for the cache and npm

    Raises `ValueError` for a run that draws no pictures, or for files of onnxruntime-web that will not do, and
    `OSError` for a folder that exists.
    """
    if out.exists():
        raise ValueError(f"--static {out} exists; give the name of a new folder.")
    if run.latent_space is not None or run.flow.network.data_shape[0] not in (1, 3):
        raise ValueError(
            "this run draws latents, and the page has no codec to make pictures of them; serve it: tvmatch demo RUN"
        )
    engine, licences = runtime_files(runtime), licence_files()
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as folder:
        for part in PAGE:
            (folder / part).write_bytes(files("tvmatch.demo").joinpath("static", part).read_bytes())
        report = export_onnx(run, folder / "model.onnx", weights)
        said = page_description(run, name) | {"model_bytes": report.size}
        place = folder / "runtime"
        place.mkdir()
        (place / "ort.js").write_bytes(engine["ort.wasm.min.js"])
        # under names that every server knows the type of: some send .mjs as a download, which browsers refuse to run
        (place / "ort-wasm.js").write_bytes(engine["ort-wasm-simd-threaded.mjs"])
        packed = gzip.compress(engine["ort-wasm-simd-threaded.wasm"], mtime=0)
        (place / "ort-wasm.bin").write_bytes(packed)  # 14 MB, 4 on the way: few servers compress by themselves
        for file, content in licences.items():
            (place / file).write_bytes(content)
        said |= {"runtime": VERSION, "runtime_bytes": len(packed)}
        (folder / "model.json").write_text(json.dumps(said, indent=1) + "\n")
        total = sum(path.stat().st_size for path in place.glob("ort*"))
    return StaticPage(report.size, total)


def page_description(run: TrainedRun, name: str) -> dict[str, Any]:
    """What the page must know of the run, as JSON values."""
    network = run.flow.network
    w_range = None
    if network.num_classes:
        match parse_guidance(run.guidance):
            case UniformGuidance(low, high):
                w_range = [low, high]
            case UniformInverseGuidance():
                w_range = [1.0, LARGEST_W]
    return {
        "name": name,
        "class_names": list(run.class_names or map(str, range(network.num_classes))),
        "data_shape": list(network.data_shape),
        "w": run.w,
        "w_range": w_range,
        "method": run.method,
        "calls": run.nfe if run.method == "jump" else EULER_STEPS,
    }
