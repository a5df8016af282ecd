"""What importing the library brings with it. Each import runs in a Python of its own."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    "tvmatch.flow_map, tvmatch.objectives, tvmatch.sampling, tvmatch.networks.presets, tvmatch.times, "
    "tvmatch.guidance, tvmatch.kernels.dual_attention"
)
COMMANDS = "tvmatch.cli.main, tvmatch.cli.sample, tvmatch.cli.export, tvmatch.cli.import_official, tvmatch.cli.train"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {
    re.split(r"[\[<>=~!;]", package)[0].strip().replace("-", "_")
    for packages in PROJECT["optional-dependencies"].values()
    for package in packages
}
# the packages of the extras, what they bring along, and core packages that take long and few commands need
OPTIONAL = (NAMES - {"tvmatch"}) | {"pandas", "pyarrow", "huggingface_hub", "transformers", "torchvision", "gradio"}
OPTIONAL |= {"lightning", "accelerate", "sklearn", "scipy", "tensorboard"}


def imported_modules(modules: str) -> set[str]:
    """Every module in a Python that imports `modules`."""
    program = f"import {modules}; import sys; print(*sorted(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def imported(modules: str) -> set[str]:
    """The top-level packages among them."""
    return {name.partition(".")[0] for name in imported_modules(modules)}


@pytest.fixture(scope="module")
def of_torch() -> set[str]:
    return imported("torch")


def test_the_package_alone_imports_neither_torch_nor_numpy() -> None:
    assert imported("tvmatch") & {"torch", "numpy", *OPTIONAL} == set()


@pytest.mark.parametrize(
    "modules", [PARTS, f"{PARTS}, tvmatch.training.trained, {COMMANDS}"], ids=["parts", "commands"]
)
def test_optional_packages_are_not_imported(modules: str, of_torch: set[str]) -> None:
    found = imported(modules)
    assert "torch" in found
    assert found & OPTIONAL - of_torch == set()


def test_opening_a_run_and_exporting_it_do_without_distributed_checkpoints() -> None:
    """They take about 2 s to import, and only training needs them."""
    found = imported_modules(
        "tvmatch.training.trained, tvmatch.training.export, tvmatch.integrations.onnx, tvmatch.devices, "
        "tvmatch.pictures"
    )
    for slow in ("torch.distributed.checkpoint", "torch.distributed.tensor", "torch.distributed.fsdp", "rich.progress"):
        assert importlib.util.find_spec(slow) is not None  # it would be called so
        assert slow not in found
