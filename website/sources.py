"""Links that lead out of docs/: files of the repository become pages of the site, pictures become files."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

# the text of a link may hold brackets of its own, as in "w uniform in [1, 4]"
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```.*?^```$)", flags=re.MULTILINE | re.DOTALL)
PICTURES = (".png", ".svg", ".jpg")
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yml": "yaml", ".json": "json", ".js": "javascript"}


class Sources:
    """The files of the repository `root` that pages link to. A page of the site is named as its file is, without
    docs/; the README is index.md and the changelog changelog.md."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def page_of(self, path: str) -> str | None:
        """The page or file of the site for a path of the repository; None if there is no such file.

        `docs/x.md` -> `x.md`; `src/tvmatch/x.py` -> `source/src/tvmatch/x.py.md`.
        """
        if path in ("README.md", "CHANGELOG.md"):
            return {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}[path]
        if not (self.root / path).is_file():
            return None
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        return f"source/{path}" if path.endswith(PICTURES) else f"source/{path}.md"

    def rewritten(self, markdown: str, path: str, page: str) -> str:
        """The text of the file `path` as the page `page`: its links to files of the repository lead to their pages."""

        def rewrite(match: re.Match[str]) -> str:
            opening, target, anchor, closing = match.groups()
            there = self._target(path, target)
            if there is None:
                return match[0]
            link = posixpath.relpath(there, posixpath.dirname(page) or ".")
            return f"{opening}{link}{'' if link.endswith('.py.md') else anchor or ''}{closing}"

        parts = FENCE.split(markdown)  # code blocks stay as they are
        return "".join(part if part.startswith("```") else LINK.sub(rewrite, part) for part in parts)

    def linked(self, markdown: str, path: str) -> Iterator[str]:
        """The paths of the repository outside docs/ that the file `path` links to."""
        for match in LINK.finditer(FENCE.sub("", markdown)):
            there = self._target(path, match[2])
            if there is not None and there.startswith("source/"):
                yield there.removeprefix("source/").removesuffix(".md") if not match[2].endswith(".md") else there[7:-3]

    def content(self, path: str) -> str | bytes:
        """A picture, or a page that shows a text file."""
        file = self.root / path
        if path.endswith(PICTURES):
            return file.read_bytes()
        text = file.read_text()
        fence = "`" * max(4, 1 + max(map(len, re.findall("`+", text)), default=0))
        return f"# {path}\n\n{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"

    def _target(self, path: str, target: str) -> str | None:
        if ":" in target:
            return None
        return self.page_of(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
