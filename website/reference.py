"""The API reference: a page for each group of modules, of their docstrings and sources (mkdocstrings)."""

from pathlib import Path

SMALL = ["sampling_speed", "devices", "pictures", "checks", "files"]
# page -> (title, modules or packages; a package stands for its modules)
PAGES = {
    "method": ("The method", ["flow_map", "sampling", "interpolant", "times", "guidance", "inference", *SMALL]),
    "objectives": ("Objectives", ["objectives"]),
    "networks": ("Networks", ["networks"]),
    "kernels": ("Kernels", ["kernels"]),
    "theory": ("Theory", ["theory"]),
    "training": ("Training", ["training"]),
    "data": ("Data", ["data"]),
    "metrics": ("Metrics", ["metrics"]),
    "integrations": ("Integrations", ["integrations"]),
    "ablation": ("Ablations", ["ablation"]),
    "demo": ("Demo pages", ["demo"]),
}
# command lines are described by --help; and what only another module of the package calls
HIDDEN = (
    "tvmatch.cli",
    "tvmatch.__main__",
    "tvmatch.kernels.dual_attention.hopper_",
    "tvmatch.kernels.dual_attention.triton_",
)


def reference_pages(source: Path) -> dict[str, str]:
    """Page name -> Markdown, for every module below `source` (src/tvmatch); what no page names gets one by its name."""
    modules = _modules(source)
    pages, taken = {}, set()
    listed = [*PAGES.items(), *((name, (name.capitalize().replace("_", " "), [name])) for name in _unlisted(modules))]
    for page, (title, parts) in listed:
        found = [
            module
            for part in parts
            for module in modules
            if module == f"tvmatch.{part}" or module.startswith(f"tvmatch.{part}.")
        ]
        taken.update(found)
        if found:
            parts = [f"# {title}", *(_directive(module, found) for module in found)]
            pages[f"reference/{page}.md"] = "\n\n".join(parts) + "\n"
    missing = set(modules) - taken - {"tvmatch"}
    if missing:
        raise ValueError(f"no page of the reference shows {sorted(missing)}.")
    return pages


def _directive(module: str, shown: list[str]) -> str:
    """A module; of a package whose modules are on the page too only the text, as its names stand with them."""
    package = any(other.startswith(f"{module}.") for other in shown)
    return f"::: {module}" + ("\n    options:\n      members: false" if package else "")


def _modules(source: Path) -> list[str]:
    """Dotted names, packages before their modules; a package without text of its own is left out."""
    names = []
    for path in sorted(source.rglob("*.py"), key=lambda path: (path.parent, path.stem != "__init__", path.stem)):
        relative = path.relative_to(source.parent).with_suffix("")
        parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
        name = ".".join(parts)
        if not any(name.startswith(hidden) for hidden in HIDDEN) and not any(part == "__pycache__" for part in parts):
            names.append(name)
    return names


def _unlisted(modules: list[str]) -> list[str]:
    known = {part for _, parts in PAGES.values() for part in parts}
    tops = {name.split(".")[1] for name in modules if "." in name}
    return sorted(tops - known)
