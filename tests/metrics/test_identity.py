"""What a result pins: all code that draws and measures, found by its imports, and the versions that count."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tvmatch.metrics import identity, statistics
from tvmatch.provenance import PACKAGE

# what the code that draws and measures imports, and what no figure depends on; nor then on what these import
WITHOUT_EFFECT = {
    "__init__.py": "the version, which is pinned by itself",
    "checks.py": "refuses wrong input",
    "devices.py": "chooses the device, which is pinned by itself",
    "files.py": "how files are written",
    "guidance.py": "warns of scales that were not trained; training draws them",
    "objectives/": "training; the engine names their type",
    "pictures.py": "the pictures beside the figures",
    "provenance.py": "the hash itself",
    "telling.py": "writes to stdout and stderr",
    "training/config.py": "options of training, and names of types",
    "training/preview.py": "the default of w, which each row tells",
    "training/ranks.py": "the processes; metrics/collecting.py adds up",
    "training/run_folder.py": "where the data are, whose fingerprint is compared",
    "training/storage.py": "writes checkpoints, and reads them to train on",
    "training/weight_copies.py": "training",
}


@pytest.mark.parametrize(
    ("code", "starts"),
    [
        (identity.CODE, ["metrics/evaluation.py"]),
        (statistics.CODE, ["metrics/statistics.py", "data/opening.py"]),
    ],
)
def test_the_hash_covers_all_that_is_imported_to_draw_and_measure(code: tuple[str, ...], starts: list[str]) -> None:
    """A new import must be pinned, or be told above to be without effect. Imports within functions are seen too."""
    seen: set[str] = set()
    waiting, reached = list(starts), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if any(name.startswith(each) for each in WITHOUT_EFFECT):
            continue
        reached.add(name)
        waiting += imported_by(name)
    assert len(reached) > 30  # the walk itself works
    missing = [name for name in reached if not any(name == each or name.startswith(f"{each}/") for each in code)]
    assert not missing


def imported_by(name: str) -> Iterator[str]:
    """The files of the package that one of them imports."""
    packages = (PACKAGE.name, *Path(name).parent.parts)  # around it
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.ImportFrom):
            above = packages[: len(packages) - node.level + 1] if node.level else ()  # of `from . import`
            module = ".".join([*above, *filter(None, [node.module])])
            for each in node.names:
                yield from filter(None, [file_of(f"{module}.{each.name}") or file_of(module)])
        elif isinstance(node, ast.Import):
            yield from filter(None, (file_of(each.name) for each in node.names))


def file_of(module: str) -> str | None:
    """`tvmatch.data.source` -> `data/source.py`; None for what is no module of the package."""
    first, *rest = module.split(".")
    place = PACKAGE.joinpath(*rest)
    for path in (place.with_suffix(".py"), place / "__init__.py") if first == PACKAGE.name and rest else ():
        if path.is_file():
            return path.relative_to(PACKAGE).as_posix()
    return None


def test_every_name_in_code_is_there() -> None:
    for name in (*identity.CODE, *statistics.CODE):
        assert (PACKAGE / name).is_file() or list(Path(PACKAGE / name).rglob("*.py")), name


def test_the_version_of_what_makes_the_noise_is_pinned() -> None:
    assert identity.code()["numpy"] == np.__version__ == statistics.made_by()["numpy"]
