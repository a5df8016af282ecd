"""The parts that the site is made of (website/); `test_site.py` builds it."""

import json
from pathlib import Path

import pytest

pytest.importorskip("griffe")
pytest.importorskip("matplotlib")

from website.benchmarks import MOST_ROWS, benchmark_pages
from website.docstrings import to_markdown
from website.reference import HIDDEN, reference_pages
from website.sources import Sources

ROOT = Path(__file__).parents[2]


def test_links_lead_to_pages_of_the_site() -> None:
    sources = Sources(ROOT)
    readme = (
        "[a](docs/kernel.md#x) ![b](docs/images/digits.png) [c](tests/conftest.py) [d](https://x.y/z) [e](CHANGELOG.md)"
    )
    assert sources.rewritten(readme, "README.md", "index.md") == (
        "[a](kernel.md#x) ![b](images/digits.png) [c](source/tests/conftest.py.md) [d](https://x.y/z) [e](changelog.md)"
    )
    brackets = "![w in [1, 4], and [0, 1)](images/digits.png) [a](https://x.y) [b] (c)"
    assert sources.rewritten(brackets, "docs/kernel.md", "kernel.md") == brackets
    assert sources.rewritten("![w in [1, 4]](docs/images/digits.png)", "README.md", "index.md") == (
        "![w in [1, 4]](images/digits.png)"
    )
    block = "\n```text\n[b](../README.md)\n```\n"
    page = f"[a](../tests/conftest.py#L3){block}[c](../README.md) [d](engine.md) [e](nowhere.md)"
    assert sources.rewritten(page, "docs/kernel.md", "kernel.md") == (
        f"[a](source/tests/conftest.py.md){block}[c](index.md) [d](engine.md) [e](nowhere.md)"
    )
    assert list(sources.linked(readme + page, "README.md")) == ["tests/conftest.py"]
    assert "````python\n" in sources.content("tests/docs/test_website.py")


def test_aligned_lists_become_lists() -> None:
    docstring = (
        "One line.\n\nnoise    [B, ...]\nlabel    an integer,\n         or many\n\nRaises `ValueError`.\n\n    a  b"
    )
    assert to_markdown(docstring) == (
        "One line.\n\n- `noise`: [B, ...]\n- `label`: an integer, or many\n\nRaises `ValueError`.\n\n    a  b"
    )
    assert to_markdown("A sentence.  Another one\nthat goes on.") == "A sentence.  Another one\nthat goes on."


def test_every_module_is_in_the_reference() -> None:
    text = "\n".join(reference_pages(ROOT / "src" / "tvmatch").values())
    for path in (ROOT / "src" / "tvmatch").rglob("*.py"):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        shown = f"::: {name}\n" in text + "\n"
        assert shown != (name == "tvmatch" or name.startswith(HIDDEN)), name


def test_figures_come_from_the_files(tmp_path: Path) -> None:
    rows = [{"network": "A|B", "ms": 0.123456, "gpus": 1, "w2": {"1": index}} for index in range(MOST_ROWS + 1)]
    content = {"device": "X", "rows": rows, "tvm": {"1": {"a": 1.0}, "2": {"a": 2500.0}}, "notes": ["one", "two"]}
    (tmp_path / "new_cpu.json").write_text(json.dumps(content))
    page = benchmark_pages(tmp_path)["benchmarks.md"]
    assert isinstance(page, str)
    for part in (
        "## new cpu",
        "| device | X |",
        "In every row: network A\\|B, ms 0.1235, gpus 1.",
        "| w2.1 |",
        f"The first {MOST_ROWS} of {MOST_ROWS + 1} rows",
        "| 2 | 2,500 |",
        "- one\n- two",
    ):
        assert part in page, part
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        benchmark_pages(tmp_path)


def test_the_digits_are_plotted() -> None:
    pages = benchmark_pages(ROOT / "benchmarks" / "results")
    page, figures = pages["benchmarks.md"], json.loads((ROOT / "benchmarks/results/digits_cpu.json").read_text())
    assert f"{figures['tvm']['1']['frechet']:.4g}" in str(page)
    for name in ("attention_h200_attention", "digits_cpu_digits", "train_step_h200_train_step"):
        assert f"](benchmarks/{name}.svg)" in str(page)
        assert b"<svg" in bytes(pages[f"benchmarks/{name}.svg"])  # type: ignore[arg-type]
