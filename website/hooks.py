"""mkdocs hooks: pages that are made, where links lead, and the order of all pages."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from website.benchmarks import benchmark_pages  # noqa: E402 (mkdocs loads this file by its path)
from website.reference import reference_pages  # noqa: E402
from website.sources import Sources  # noqa: E402

# pages that are not there are left out, and pages that nobody has put here come under "More"
ORDER: dict[str, list[str]] = {
    "Use": ["install", "your_own_pictures", "demo", "export", "python_api"],
    "Method": ["mathematics", "theory", "methods", "stability", "ablations", "paper_map"],
    "Training at scale": ["distributed", "engine", "kernel"],
    "Evaluation": ["evaluation", "sampling", "benchmarks"],
}
SOURCES = Sources(ROOT)
STYLE = (Path(__file__).parent / "style.css").read_text()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation: the pages of ORDER that exist, then those that it does not name, then the reference."""
    written = {
        path.relative_to(config.docs_dir).with_suffix("").as_posix() for path in Path(config.docs_dir).rglob("*.md")
    }
    there = written | {"benchmarks"}
    nav: list[Any] = [{"Quickstart": "index.md"}]
    for title, names in ORDER.items():
        nav.append({title: [f"{name}.md" for name in names if name in there]})
    rest = sorted(there - {name for names in ORDER.values() for name in names})
    if rest:
        nav.append({"More": [f"{name}.md" for name in rest]})
    nav.append({"Reference": list(reference_pages(ROOT / "src" / "tvmatch"))})
    nav.append({"Changelog": "changelog.md"})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made: README, changelog, reference, benchmarks, and what they and docs/ link to."""

    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    texts = {"README.md": (ROOT / "README.md").read_text(), "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text()}
    texts |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    linked = {path for name, text in texts.items() for path in SOURCES.linked(text, name)}
    for path in sorted(linked):
        add(f"source/{path}" if path.endswith((".png", ".svg", ".jpg")) else f"source/{path}.md", SOURCES.content(path))
    for name, page in (("README.md", "index.md"), ("CHANGELOG.md", "changelog.md")):
        add(page, SOURCES.rewritten(texts[name], name, page))
    made = {**reference_pages(ROOT / "src" / "tvmatch"), **benchmark_pages(ROOT / "benchmarks" / "results")}
    for name, content in {**made, "style.css": STYLE}.items():
        add(name, content)
    for file in files.documentation_pages():
        if file.src_uri.startswith("source/"):
            file.inclusion = file.inclusion.NOT_IN_NAV
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links of docs/ to the rest of the repository."""
    if page.file.generated_by is not None:
        return markdown
    return SOURCES.rewritten(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
