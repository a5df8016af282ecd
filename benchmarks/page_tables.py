"""Tables that commands write into the pages of docs/, between markers."""

import re


def with_tables(name: str, text: str, tables: dict[str, str]) -> str:
    """The text of docs/`name` with each table after its `<!-- figures: MARKER -->`, which must be there once."""
    for marker, content in tables.items():
        pattern = rf"(<!-- figures: {marker} -->\n).*?(<!-- end of figures -->)"
        text, found = re.subn(pattern, lambda m, c=content: f"{m[1]}\n{c}\n\n{m[2]}", text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"docs/{name} must have the marker {marker} once, and has it {found} times.")
    return text
