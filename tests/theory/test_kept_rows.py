"""The commands behind docs/theory.md: as documented they are the committed results, and other settings never replace
them."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
COMMANDS = {"bound": "methods_bound", "gradient_norms": "methods_gradient_norms"}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Run a command of benchmarks/ in this process, which may train nothing and draws nothing."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def run(name: str, *arguments: str) -> None:
        module = import_module(name)
        monkeypatch.setattr(module, "plot", lambda result, path: None)
        monkeypatch.setattr(module, "ProcessPoolExecutor", NoTraining)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        module.main()

    yield run
    for name in set(sys.modules) - before:
        if (ROOT / "benchmarks" / f"{name}.py").exists():
            del sys.modules[name]


class NoTraining:
    """A pool that takes no job."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "NoTraining":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, *arguments: object) -> None:
        pytest.fail(f"a run would be trained: {arguments}")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_documented_command_is_that_of_the_committed_results(name: str, call, tmp_path: Path) -> None:
    """Without options it finds every run done, and keeps every row."""
    out = tmp_path / "results.json"
    shutil.copy(RESULTS / f"{COMMANDS[name]}.json", out)
    call(name, "--out", str(out))
    assert json.loads(out.read_text())["rows"] == json.loads((RESULTS / f"{COMMANDS[name]}.json").read_text())["rows"]
    assert f"python benchmarks/{name}.py --workers 2\n" in (ROOT / "docs" / "theory.md").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_results_of_other_settings_are_kept(name: str, call, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    shutil.copy(RESULTS / f"{COMMANDS[name]}.json", out)
    before = out.read_bytes()
    with pytest.raises(SystemExit, match=r"other settings \(batch \d+ there, 7 now\); give another --out"):
        call(name, "--out", str(out), "--batch", "7")
    assert out.read_bytes() == before


def test_a_missing_run_would_be_trained(call, tmp_path: Path) -> None:
    result = json.loads((RESULTS / "methods_bound.json").read_text())
    out = tmp_path / "results.json"
    first = {name: result["rows"][0][name] for name in ("data", "network", "seed")}
    left = [row for row in result["rows"] if {name: row[name] for name in first} != first]
    out.write_text(json.dumps(result | {"rows": left}))
    with pytest.raises(pytest.fail.Exception, match="would be trained"):
        call("bound", "--out", str(out))
