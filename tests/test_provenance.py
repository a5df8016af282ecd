"""The commit is this project's, not that of a repository it happens to be installed in; code is told by its hash."""

import subprocess
from pathlib import Path

import pytest

from tvmatch import provenance
from tvmatch.provenance import code_hash, commit

asked = commit.__wrapped__  # without what was found before


def test_the_commit_of_another_repository_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMMIT", raising=False)
    package = tmp_path / "site-packages" / "tvmatch"
    package.mkdir(parents=True)
    (package / "provenance.py").touch()
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert asked() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    assert asked() is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    told = asked()
    assert told is not None
    assert not told.endswith("+")
    (package / "provenance.py").write_text("changed = True\n")
    assert asked() == f"{told}+"
    monkeypatch.setenv("COMMIT", "abc")
    assert asked() == "abc"


def test_the_hash_knows_names_and_contents_of_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    (tmp_path / "metrics").mkdir()
    hashes = []
    for name, text in (("metrics/a.py", "1"), ("metrics/a.py", "2"), ("metrics/b.py", ""), ("flow.py", "1")):
        (tmp_path / name).write_text(text)
        hashes.append(code_hash(("metrics",)))
    assert len(set(hashes[:3])) == 3
    assert hashes[3] == hashes[2]  # not asked for
    assert code_hash(("metrics", "flow.py")) != hashes[2]
    with pytest.raises(FileNotFoundError):
        code_hash(("none.py",))
