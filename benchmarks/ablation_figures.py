"""Put what the results of methods, ablations, bound and gradient norms say into docs/, as tables between markers.

    python benchmarks/ablation_figures.py [--from FOLDER]

--from takes a folder of new results (methods_bound.json, methods_gradient_norms.json, and ablations.json of `tvmatch
ablate` in it or in folders below), copies them into benchmarks/results and draws their pictures; without it the tables
are written again from what is there. A test holds docs/ to these tables, so that no figure is typed.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bound
import gradient_norms
from cifar10_figures import of_seconds
from cifar10_runs import read_runs
from methods_tables import chosen_table, cifar10_table, cost_table, digits_table, plane_table
from page_tables import with_tables
from theory_tables import bound_table, digits_flatness_table, flatness_table, norms_table
from tvmatch.ablation.report import draw, markdown
from tvmatch.ablation.studies import STUDIES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ABLATIONS = "methods_ablations.json"


def ablation_tables(result: dict[str, Any]) -> str:
    """The table of every study with a run that is done, and its picture."""
    parts = []
    for name, study in result["studies"].items():
        if not study["summary"]:
            continue
        options = ", ".join(f"{key} {value}" for key, value in study["options"].items()) or "those of the task"
        parts.append(markdown(name, STUDIES[name], study["summary"]).strip())
        parts.append(f"Options: {options}. {study['machine']}.")
        parts.append(f"![{study['title']}](../benchmarks/results/methods_ablations_{name}.png)")
    return "\n\n".join(parts)


def result(name: str) -> dict[str, Any]:
    """Committed results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


TABLES: dict[str, dict[str, Callable[[], str]]] = {  # page -> marker -> table
    "theory.md": {
        "bound": lambda: bound_table(result("methods_bound")),
        "flatness": lambda: flatness_table(result("methods_bound")),
        "flatness digits": lambda: digits_flatness_table(result("methods_flatness")),
        "norms": lambda: norms_table(result("methods_gradient_norms")),
    },
    "ablations.md": {"ablations": lambda: ablation_tables(result("methods_ablations"))},
    "methods.md": {
        "unet": lambda: digits_table(result("methods_digits_unet")),
        "unet passes": lambda: digits_table(result("methods_digits_unet_passes")),
        "cost": lambda: cost_table(result("methods_cost_h200")),
        "plane": lambda: plane_table(result("methods_2d")),
        "passes": lambda: plane_table(result("methods_2d_passes")),
        "digits": lambda: digits_table(result("methods_digits")),
        "digits passes": lambda: digits_table(result("methods_digits_groups")),
        "chosen": lambda: chosen_table(result("methods_2d"), result("methods_digits")),
        "cifar10": lambda: cifar10_table(of_seconds(read_runs(RESULTS / "cifar10"), 420)),
    },
}


def filled(page: str, text: str) -> str:
    """The page with the tables of its markers as the results have them."""
    return with_tables(page, text, {marker: table() for marker, table in TABLES[page].items()})


def ablations_in(folder: Path) -> Iterator[dict[str, Any]]:
    """Every report of `tvmatch ablate` below a folder."""
    for path in sorted(folder.rglob("ablations.json")):
        yield json.loads(path.read_text())


def take(folder: Path) -> None:
    """Copy new results and draw them."""
    for name, module in (("methods_bound", bound), ("methods_gradient_norms", gradient_norms)):
        for path in folder.rglob(f"{name}.json"):
            shutil.copy(path, RESULTS / path.name)
            module.plot(json.loads(path.read_text()), RESULTS / f"{name}.png")
    path = RESULTS / ABLATIONS
    merged = json.loads(path.read_text()) if path.exists() else {"studies": {}}
    for report in ablations_in(folder):
        for name, study in report["studies"].items():
            if study["summary"]:
                study |= {"options": report["options"], "machine": report["machine"], "samples": report["samples"]}
                merged["studies"][name] = study
                draw(name, STUDIES[name], study["summary"], RESULTS / f"methods_ablations_{name}.png")
    path.write_text(json.dumps(merged, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", type=Path, dest="folder", help="a folder of new results")
    options = parser.parse_args()
    if options.folder is not None:
        take(options.folder)
    for page in TABLES:
        path = ROOT / "docs" / page
        path.write_text(filled(page, path.read_text()))


if __name__ == "__main__":
    main()
