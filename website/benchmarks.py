"""The page of benchmarks: every file of benchmarks/results as it is, so that no figure is ever typed again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from website.plots import plots_of

MOST_ROWS = 120  # of one table; the file has the rest
HEAD = """# Benchmarks

Made of `benchmarks/results/*.json` when the site is built: what the scripts in `benchmarks/` and `runs/` have measured,
each file with the machine, the versions and the commit that it names. What they mean, and what falls short, is in the
pages on the [kernel](kernel.md), the [engine](engine.md), [your own pictures](your_own_pictures.md) and the
[methods](methods.md).
"""


def benchmark_pages(results: Path) -> dict[str, str | bytes]:
    """benchmarks.md, and the plots it shows, by name. `ValueError` names a file that is no JSON."""
    pages: dict[str, str | bytes] = {}
    parts = [HEAD]
    for path in sorted(results.glob("*.json")):
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        parts.append(f"## {path.stem.replace('_', ' ')}\n\n`benchmarks/results/{path.name}`")
        for name, (caption, content) in plots_of(path.stem, data).items():
            pages[f"benchmarks/{name}.svg"] = content
            parts.append(f"![{caption}](benchmarks/{name}.svg)")
        parts.extend(_rendered(data, 3))
    pages["benchmarks.md"] = "\n\n".join(parts) + "\n"
    return pages


def _rendered(value: Any, level: int) -> list[str]:
    """Markdown of a JSON value: plain values in one table, lists of objects and objects of objects as tables."""
    if _is_table(value):
        return _table(value)
    if isinstance(value, Mapping):
        if _same_keys(value):
            return _table([{"": name} | dict(row) for name, row in value.items()])
        plain = [{"": name, "value": each} for name, each in value.items() if not _nested(each)]
        parts = _table(plain, keep=True) if plain else []
        for name, each in value.items():
            if _nested(each):
                parts += [f"{'#' * min(level, 6)} {str(name).replace('_', ' ')}", *_rendered(each, level + 1)]
        return parts
    if isinstance(value, list):
        return ["\n".join(f"- {_shown(each)}" for each in value)]
    return [_shown(value)]


def _table(rows: Sequence[Mapping[str, Any]], keep: bool = False) -> list[str]:
    """A table; columns that say the same in every row become a line above it, unless `keep`."""
    flat = [_flattened(row) for row in rows[:MOST_ROWS]]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    same = [
        name for name in columns if len(flat) > 2 and len({_shown(row.get(name)) for row in flat}) == 1 and not keep
    ]
    columns = [name for name in columns if name not in same]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_shown(row.get(name)) for name in columns) + " |" for row in flat]
    parts = ["In every row: " + ", ".join(f"{name} {_shown(flat[0][name])}" for name in same) + "."] if same else []
    parts.append("\n".join(lines))
    if len(rows) > MOST_ROWS:
        parts.append(f"The first {MOST_ROWS} of {len(rows)} rows; the file has all.")
    return parts


def _flattened(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": each for inner, each in _flattened(value).items()}
        else:
            flat[name] = value
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("*", "\\*")


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(each, Mapping | str) for each in value)
    )


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _same_keys(value: Mapping[str, Any]) -> bool:
    rows = list(value.values())
    if len(rows) < 2 or not all(isinstance(row, Mapping) and row for row in rows):
        return False
    return all(row.keys() == rows[0].keys() and not any(map(_nested, row.values())) for row in rows)
