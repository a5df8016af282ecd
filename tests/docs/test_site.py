"""The site builds without a warning, shows every page, and loads nothing from another server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.browser import Watched, chromium, served

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def build(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site), *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text()
    pages = [path.stem for path in (ROOT / "docs").glob("*.md")]
    for name in [*pages, "benchmarks", "changelog", "reference/method", "reference/objectives"]:
        assert (site / f"{name}.html").is_file()
        assert f'href="{name}.html"' in home, name


def test_no_page_loads_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link\b[^>]*\brel=\"?(?:stylesheet|preconnect|icon)\"?[^>]*\bhref=\"([^\"]+)\"", text)
        assert not [url for url in loaded if "//" in url], path


def test_the_reference_says_shapes_and_shows_the_source(site: Path) -> None:
    text = (site / "reference/method.html").read_text()
    assert "label [B] int64" in text  # the docstring of FlowMap
    assert "Source code in" in text
    assert "def displacement" in re.sub("<[^>]+>", "", text)


def test_pages_in_chromium(site: Path) -> None:
    with chromium() as browser, served(site) as address:
        for name in ("index", "mathematics", "benchmarks", "reference/objectives"):
            page = browser.new_page()
            watched = Watched(page)
            page.goto(f"{address}/{name}.html")
            page.locator("h1").first.wait_for()
            broken = (
                "() => [...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src)"
            )
            assert page.evaluate(broken) == []
            assert watched.complaints == []
            assert watched.hosts == {"127.0.0.1"}
        page.get_by_role("textbox", name="Search").fill("terminal velocity")
        page.locator(".md-search-result__item").first.wait_for()


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """With one page only, so that it is quick."""
    pytest.importorskip("mkdocs")
    for name, content in {
        "docs/mathematics.md": "# A\n\n[gone](nowhere.md)\n",
        "README.md": "# R\n",
        "CHANGELOG.md": "# C\n",
        "src/tvmatch/flow_map.py": '"""Text."""\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "website").mkdir()
    for path in (ROOT / "website").iterdir():
        if path.is_file():
            (tmp_path / "website" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    built = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert built.returncode != 0
    assert "nowhere.md" in built.stderr
