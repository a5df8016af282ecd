#!/usr/bin/env python3
"""What `runs/cifar10_1gpu.sh` writes down of a run, and reads from it; the means of `cifar10_seeds.py`. Plain Python,
which starts in no time.

cifar10_records.py settings OUT MINUTES NAME=VALUE ...   write OUT/settings, or end with 2 if they are others there
cifar10_records.py best FOLDER                           average and w of the least Frechet distance in ema_*.json
cifar10_records.py metrics FILE                          its whole lines, without tables
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev

DEFAULTS = {"OPTIMIZER": "adamw"}  # what a folder has that is older than the choice


def keep_settings(out: Path, minutes: str, settings: dict[str, str]) -> str | None:
    """Write the settings of a training, or say why this folder is of another; `minutes` may grow ("": not asked)."""
    path = out / "settings"
    if not path.exists():
        if (out / "warm").exists() or (out / "run").exists():
            return f"{out} holds a run that does not say its settings; give another OUT."
        out.mkdir(parents=True, exist_ok=True)
        _write(path, settings | {"MINUTES": minutes or "0"})
        return None
    earlier = dict(line.split("=", 1) for line in path.read_text().splitlines())
    trained = earlier.pop("MINUTES")
    earlier = DEFAULTS | earlier
    differences = [
        f"{name}={value!r} and not {earlier.get(name)!r}"
        for name, value in settings.items()
        if earlier.get(name) != value
    ]
    if differences:
        return (
            f"{out} was trained with other settings, now {', '.join(differences)}; give those of then, or another OUT."
        )
    if minutes and float(minutes) < float(trained):
        return f"{out} was given MINUTES={trained}, now {minutes}; give as many, more of them, or another OUT."
    if minutes and minutes != trained:
        _write(path, earlier | {"MINUTES": minutes})
    return None


def _write(path: Path, settings: dict[str, str]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    temporary.replace(path)


def best(folder: Path) -> tuple[str, float]:
    """Average and guidance scale; all of them are told on stderr."""
    found = []
    for path in folder.glob("ema_*.json"):
        rows = json.loads(path.read_text())["rows"]
        found += [(row["frechet"], path.stem.removeprefix("ema_"), row["w"]) for row in rows]
    for distance, ema, w in sorted(found):
        print(f"average {ema}, w {w}: Frechet {distance:.3f}", file=sys.stderr)
    return min(found)[1:]


def plain_metrics(path: Path) -> list[str]:
    """Lines of numbers; the last may be cut off by a kill."""
    lines = path.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [json.dumps({k: v for k, v in row.items() if not isinstance(v, dict | list)}) for row in rows]


def table_of_means(results: Path) -> str:
    """Frechet distances of every run, and their means over the seeds of what is otherwise the same."""
    found: dict[tuple, dict[str, float]] = {}  # of each method, network, average, w, samples and calls: of each seed
    for path in sorted(results.glob("*_seed*/evaluation*.json")):
        evaluation = json.loads(path.read_text())
        method, seed = path.parent.name.rsplit("_seed", 1)
        network = re.search(r"^network: (.*)", (path.parent / "config.yaml").read_text(), re.MULTILINE)
        of = (method, network[1] if network else "", evaluation["checkpoint"]["ema"])
        for row in evaluation["rows"]:
            found.setdefault((*of, row["w"], evaluation["samples"], row["nfe"]), {})[seed] = row["frechet"]
    lines = ["| runs | average, w | samples | calls | Frechet distance of each seed | mean |", "|" + "---|" * 6]
    for (method, network, ema, w, samples, calls), seeds in sorted(found.items()):
        values = list(seeds.values())
        average = f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
        cells = [f"{method}, {network}, seeds {', '.join(seeds)}", f"{ema:g}, {w:g}", f"{samples:,}", str(calls)]
        lines.append(f"| {' | '.join([*cells, ' / '.join(f'{value:.2f}' for value in values), average])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    verb, place, *rest = sys.argv[1:]
    if verb == "settings":
        refusal = keep_settings(Path(place), rest[0], dict(word.split("=", 1) for word in rest[1:]))
        if refusal is not None:
            print(refusal, file=sys.stderr)
            raise SystemExit(2)
    elif verb == "best":
        print(*best(Path(place)))
    else:
        for line in plain_metrics(Path(place)):
            print(line)


if __name__ == "__main__":
    main()
