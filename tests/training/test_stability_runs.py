"""runs/stability.py: what docs/stability.md shows is replaced by runs of its own length only."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, which trains nothing, and whose folders of what is shown are in `tmp_path`."""
    monkeypatch.syspath_prepend(str(ROOT / "runs"))
    module = importlib.import_module("stability")

    def run(name: str, folder: Path, steps: int) -> list[dict[str, float]]:
        folder.mkdir(parents=True)
        return [{"step": steps}]

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "draw_instruments", lambda folder, picture: picture.write_text("a picture"))
    (tmp_path / "shown").mkdir()
    monkeypatch.setattr(module, "IMAGES", tmp_path / "shown")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "shown" / "stability_cpu.json")
    return module


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("steps", "place"), [("300", "shown"), ("50", "out"), ("350", "out")])
def test_other_steps_leave_what_is_shown(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: str, place: str
) -> None:
    monkeypatch.setattr("sys.argv", ["stability.py", "--out", str(tmp_path / "out"), "--steps", steps])
    script.main()
    written = {"stability_benign.png", "stability_diverging.png", "stability_cpu.json"}
    assert {name: files(tmp_path / name) for name in ("shown", "out")} == {
        "shown": set(),
        "out": set(),
        place: written,
    }
    results = json.loads((tmp_path / place / "stability_cpu.json").read_text())
    assert [results[name]["rows"] for name in ("benign", "diverging")] == [[{"step": int(steps)}]] * 2


@pytest.mark.parametrize("steps", ["0", "-50", "20", "310"])
def test_steps_without_samples_are_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture, steps: str
) -> None:
    monkeypatch.setattr("sys.argv", ["stability.py", "--out", str(tmp_path / "out"), f"--steps={steps}"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert f"--steps {steps}: samples are drawn every 50 steps; give a multiple of 50" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
