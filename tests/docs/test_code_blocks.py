"""Every code block of the README and docs/ runs, in order, page by page, or says why not and is parsed (blocks.py)."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from PIL import Image

from tests.docs.blocks import Block, blocks_of
from tvmatch.cli import main
from tvmatch.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
LANGUAGES = {"python", "bash", "text", "json", "yaml", ""}
REMEDY = "If it cannot run here, write `<!-- not run: WHY -->` above it, or `<!-- here with: train --steps 1 -->`."


class ParsedError(BaseException):
    """The command line was read without a mistake; not an `Exception`, which commands may catch."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `runs/digits` is in the docs: the run of `make demo`, after two steps."""
    run = tmp_path_factory.mktemp("docs") / "digits"
    options = ["--steps", "2", "--batch-size", "8", "--sample-every", "0", "--device", "cpu"]
    assert main(["train", "--run", str(run), *options]) == 0
    return run


@pytest.fixture
def _sandbox(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the docs speak of, as the working directory: runs/digits, pictures (FOLDER), SNAPSHOT.pkl."""
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    for path in digits.rglob("*"):
        there = tmp_path / "runs" / "digits" / path.relative_to(digits)
        there.mkdir(parents=True, exist_ok=True) if path.is_dir() else os.link(path, there)
    rng = np.random.default_rng(0)
    for folder in ("pictures", "FOLDER"):
        for label in ("n01440764", "n01443537"):
            (tmp_path / folder / label).mkdir(parents=True)
            for index in range(2):
                picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
                picture.save(tmp_path / folder / label / f"{index:04d}.jpg")
        (tmp_path / folder / "class_names.txt").write_text("n01440764 tench\nn01443537 goldfish, Carassius auratus\n")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "SNAPSHOT.pkl").symlink_to(ROOT / "tests/data/official_snapshot_a.pkl")
    monkeypatch.chdir(tmp_path)


def parse(words: list[str]) -> None:
    """Raise unless `tvmatch WORDS` is a command line that `tvmatch` understands; nothing is done."""
    real = tyro.cli

    def parse_only(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tyro.cli", parse_only)
        with pytest.raises(ParsedError):
            main(words)


def check_command(block: Block, words: list[str]) -> None:
    """Run one command line, or check it as far as that goes without running it."""
    program, where = words[0], f"{block.place}: {' '.join(words)}"
    if program == "tvmatch":
        parse(words[1:])
        if block.mark != "not run":
            assert main(words[1:] + block.extra(words[1])) == 0, f"{where} fails. {REMEDY}"
    elif program == "make":  # .ci/run runs these themselves
        for target in words[1:]:
            assert "=" in target or re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), where
    else:
        assert block.mark == "not run", f"{where} is not run. {REMEDY}"
        if "tvmatch" in words:  # torchrun ... -m -- tvmatch ...
            parse(words[words.index("tvmatch") + 1 :])
        for script in words:
            assert (
                not re.fullmatch(r"(runs|examples|benchmarks|website)/\w+\.(py|sh)", script) or (ROOT / script).exists()
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("_sandbox")
def test_blocks_run(page: Path, capsys: pytest.CaptureFixture) -> None:
    namespace: dict = {"__name__": "docs"}
    for block in blocks_of(page):
        shutil.rmtree("runs/mine", ignore_errors=True)  # each block that trains it shows another way
        if block.language == "python":
            code = compile(block.text, block.place, "exec")
            if block.mark != "not run":
                exec(code, namespace)
        for words in block.commands:
            check_command(block, words)
            said = capsys.readouterr().err
            assert "not seen in training" not in said, f"{block.place}: {' '.join(words)} warns a reader: {said}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_what_they_seem(page: Path) -> None:
    text = page.read_text()
    found = blocks_of(page)
    assert text.count("\n```") == 2 * len(found) - text.startswith("```"), f"{page.name}: a block is not closed"
    for block in found:
        assert block.language in LANGUAGES, f"{block.place}: nothing runs blocks of language {block.language!r}"
        assert block.mark is None or len(block.said) > 5, f"{block.place}: say why."
        if block.language == "text":
            assert not re.search(r"^(import|from) \w+", block.text, re.MULTILINE), f"{block.place} is Python: say so"
        if block.language == "json":
            json.loads(block.text)
    marks = re.findall(r"<!-- (?:not run|here with)", text)
    assert len(marks) == sum(block.mark is not None for block in found), f"{page.name}: a mark is above no block"
    assert not re.search(r"^    tvmatch ", text, re.MULTILINE), f"{page.name}: write commands in fenced blocks"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    """`tvmatch NAME ...` within a sentence: the command and its options are there."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command, rest in re.findall(r"`tvmatch ([\w-]+)([^`]*)`", prose):
        assert command in COMMANDS, f"{page.name}: there is no `tvmatch {command}`"
        for option in re.findall(r"--[\w-]+", rest):
            assert option in help_of(command), f"{page.name}: tvmatch {command} has no {option}"


_HELP: dict[str, str] = {}


def help_of(command: str) -> str:
    if command not in _HELP:
        import contextlib
        import io

        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        _HELP[command] = out.getvalue()
    return _HELP[command]


def test_marks_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: it needs a GPU -->\n```bash\ntvmatch train --steps 5 \\\n  --seed 1  # why\n```\n\n"
        "<!-- here with: train --steps 1; sample --count 2 -->\n```text\ntvmatch train\ntvmatch sample x\n```\n"
        "```text\na tree\n```\n"
    )
    first, second, third = blocks_of(page)
    assert (first.mark, first.said, first.line) == ("not run", "it needs a GPU", 1)
    assert first.commands == [["tvmatch", "train", "--steps", "5", "--seed", "1"]]
    assert (second.extra("train"), second.extra("sample")) == (["--steps", "1"], ["--count", "2"])
    assert (third.commands, third.mark) == ([], None)


@pytest.mark.parametrize("words", [["train", "--stepz", "5"], ["trian"], ["train", "--steps", "five"], ["sample"]])
def test_commands_that_are_not_understood(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises((SystemExit, pytest.fail.Exception)):
        parse(words)


def test_the_readme_shows_the_figures_of_the_results_file() -> None:
    report = json.loads((ROOT / "benchmarks/results/digits_cpu.json").read_text())
    text = (ROOT / "README.md").read_text()
    for name, shown in (("tvm", "TVM"), ("flow_matching", "flow matching")):
        for calls, figures in report[name].items():
            row = f"| {shown} | {calls} | {figures['class_accuracy']:.3f} | {figures['frechet']:.3f} |"
            assert row in text, f"the README lacks {row}"
