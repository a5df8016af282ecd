"""Docstrings as Markdown: the aligned lists of ours, `name    what it is`, become lists; all else stays."""

import re
from typing import Any

import griffe

ENTRY = re.compile(r"(\S(?:[^ ]| (?! ))*?) {2,}(\S.*)")  # name, two spaces or more, text


class AlignedLists(griffe.Extension):
    """The extension that mkdocs.yml names."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class or function."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    """Paragraphs whose every line is an entry or a continuation, as a list."""
    return "\n\n".join(_as_list(paragraph) or paragraph for paragraph in re.split(r"\n[ \t]*\n", docstring))


def _as_list(paragraph: str) -> str | None:
    entries: list[str] = []
    for line in paragraph.split("\n"):
        entry = ENTRY.fullmatch(line)
        if entry is not None and not line.startswith(" "):
            entries.append(f"- `{entry[1]}`: {entry[2]}")
        elif entries and line.startswith("  "):
            entries[-1] += f" {line.strip()}"
        else:
            return None
    return "\n".join(entries)
