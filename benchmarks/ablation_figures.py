"""Put what the results of methods, ablations, bound and gradient norms say into docs/, as tables between markers.

    python benchmarks/ablation_figures.py [--from FOLDER]

--from takes a folder of new results (methods_bound.json, methods_gradient_norms.json, and ablations.json of `tvmatch
ablate` in it or in folders below), copies them into benchmarks/results and draws their pictures; without it the tables
are written again from what is there. A test holds docs/ to these tables, so that no figure is typed.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bound
import gradient_norms
from methods_tables import digits_table, plane_table
from page_tables import with_tables
from tvmatch.ablation.report import draw, markdown, show
from tvmatch.ablation.studies import STUDIES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ABLATIONS = "methods_ablations.json"


def bound_table(result: dict[str, Any]) -> str:
    """Both sides at every moment, means over seeds."""
    lines = [
        f"Held at {result['hold']} of {result['evaluated']} evaluated points. {result['machine']}; {result['points']} "
        f"points, hidden size {result['hidden']}, batch {result['batch']}; learning rate {result['learning_rate']:g}.",
        "",
        "| data | network | step | seeds | W2^2 | E\\|delta\\|^2 | right side | looseness | largest L | int L |",
        "|" + "---|" * 10,
    ]
    for row in result["summary"]:
        cells = [row["data"], row["network"], str(row["step"]), str(row["seeds"])]
        cells += [show(row[name]) for name in ("w2_squared", "coupled", "right")] + [f"{row['looseness']:.3g}"]
        cells += [show(row[name]) for name in ("lipschitz", "growth")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def norms_table(result: dict[str, Any]) -> str:
    """Norms and their ratio to w = 1, mean and deviation over seeds."""
    lines = [
        f"{result['machine']}; {result['steps']} steps of {result['batch']}, hidden size {result['hidden']}.",
        "",
        "| method | w | seeds | gradient norm | ratio to w = 1 |",
        "|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        cells = [row["method"], f"{row['w']:g}", str(row["seeds"]), show(row["norm"]), show(row.get("ratio"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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


TABLES = {  # page -> marker -> (file, table)
    "theory.md": {
        "bound": ("methods_bound.json", bound_table),
        "norms": ("methods_gradient_norms.json", norms_table),
    },
    "ablations.md": {"ablations": (ABLATIONS, ablation_tables)},
    "methods.md": {
        "plane": ("methods_2d.json", plane_table),
        "digits": ("methods_digits.json", digits_table),
        "unet": ("methods_digits_unet.json", digits_table),
    },
}


def filled(page: str, text: str) -> str:
    """The page with the tables of its markers as the results have them."""
    tables = TABLES[page].items()
    return with_tables(page, text, {m: table(json.loads((RESULTS / file).read_text())) for m, (file, table) in tables})


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
