"""Which code made a result: the commit it was checked out at, and a hash of the files that matter."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


@cache
def commit() -> str | None:
    """The variable COMMIT, or the commit of this checkout, with a + if something in it has changed; None outside of
    one, as where the package is installed (a repository around the place of installation is another project's)."""
    if told := os.environ.get("COMMIT"):
        return told
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty=+", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True)
    except OSError:  # there is no git
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def code_hash(names: Sequence[str]) -> str:
    """SHA-256 of the Python files and folders of the package that are named, by their place in it and their content."""
    found = [
        path for name in names for path in ((PACKAGE / name).rglob("*.py") if "." not in name else [PACKAGE / name])
    ]
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
