"""Every Python block of the README and the docs runs, in order, in one namespace a page."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
LANGUAGES = {"python", "bash", "text", "json", ""}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "docs"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_languages(page: Path) -> None:
    text = page.read_text()
    for language in re.findall(r"^```(\w*)\n.*?^```$", text, flags=re.MULTILINE | re.DOTALL):
        assert language in LANGUAGES, f"{page.name}: nothing runs blocks of language {language!r}"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_commands_in_the_readme_exist(capsys: pytest.CaptureFixture) -> None:
    """What the README shows of the command line is understood by it: options by name, commands by name."""
    from tvmatch.cli.main import COMMANDS, main

    shown = re.findall(r"^tvmatch (\w+)(.*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert shown
    for command, rest in shown:
        assert command in COMMANDS
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        text = capsys.readouterr().out
        for option in re.findall(r"--[\w-]+", rest):
            assert option in text, f"tvmatch {command} has no {option}"


def test_the_readme_shows_the_figures_of_the_results_file() -> None:
    report = json.loads((ROOT / "benchmarks/results/digits_cpu.json").read_text())
    text = (ROOT / "README.md").read_text()
    for name, shown in (("tvm", "TVM"), ("flow_matching", "flow matching")):
        for calls, figures in report[name].items():
            row = f"| {shown} | {calls} | {figures['class_accuracy']:.3f} | {figures['frechet']:.3f} |"
            assert row in text, f"the README lacks {row}"
