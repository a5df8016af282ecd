"""What pyproject.toml promises; `runs/check_wheel.sh` builds and installs it (docs/install.md)."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_GPUS = re.compile(r"nvidia|cuda|cudnn|cupy|triton|rocm|flash|xformers|tensorrt", re.IGNORECASE)


def names(packages: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~!; ]", package)[0].lower().replace("_", "-") for package in packages}


def test_extras_and_what_is_installed_without_them() -> None:
    assert {"data", "eval", "export", "demo", "docs", "dev"} <= EXTRAS.keys()
    assert not [package for package in PROJECT["dependencies"] if FOR_GPUS.search(package)]
    assert len(PROJECT["dependencies"]) <= 10


def test_every_package_is_pinned_for_the_tests() -> None:
    pinned = names((ROOT / "constraints.txt").read_text().splitlines())
    asked = names(PROJECT["dependencies"]) | {name for packages in EXTRAS.values() for name in names(packages)}
    assert asked - {"tvmatch"} <= pinned


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra != "dev"])
def test_the_page_on_installing_names_every_extra(extra: str) -> None:
    assert f"| `{extra}` | " in (ROOT / "docs" / "install.md").read_text()


def test_the_check_of_the_wheel_is_a_script() -> None:
    subprocess.run(["bash", "-n", ROOT / "runs" / "check_wheel.sh"], check=True)
    done = subprocess.run(
        ["bash", ROOT / "runs" / "check_wheel.sh", ROOT / "docs"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not empty; give a new folder" in done.stderr
