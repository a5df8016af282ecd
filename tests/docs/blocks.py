"""The code blocks of the README and docs/, and the lines of those that are commands.

A comment directly above a block says what is special about it here:

    <!-- not run: REASON -->                       it needs a GPU, a data set, hours, ...; it is still parsed
    <!-- here with: train --steps 1; sample ... -->  options that each such command gets as well, so that it is quick
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|here with): (?P<said>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)
PROGRAMS = ("tvmatch", "torchrun", "make", "pip", "python", "source", "bash", "sbatch")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, and its mark."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None
    said: str

    @property
    def place(self) -> str:
        return f"{self.page.name}, line {self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line; none if the block holds no commands."""
        if self.language not in ("bash", "text", ""):
            return []
        lines = [line for line in self.text.replace("\\\n", " ").split("\n") if line.strip() and line.strip()[0] != "#"]
        if self.language != "bash" and not any(line.split()[0] in PROGRAMS for line in lines):
            return []
        return [shlex.split(line, comments=True) for line in lines]

    def extra(self, command: str) -> list[str]:
        """What `here with` adds to `tvmatch COMMAND`."""
        if self.mark != "here with":
            return []
        parts = [shlex.split(part) for part in self.said.split(";")]
        return [word for part in parts if part[0] == command for word in part[1:]]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start()) + 1,
            match["language"],
            match["text"],
            match["mark"],
            match["said"] or "",
        )
        for match in BLOCK.finditer(text)
    ]
