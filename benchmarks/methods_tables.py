"""What methods_2d.py and methods_digits.py found, as tables for docs/methods.md."""

from collections.abc import Callable, Sequence
from typing import Any

from methods_plot import CALLS


def _table(head: str, names: Sequence[str], cells: Callable[[str], list[str]]) -> list[str]:
    """Rows of methods, in the order of `names`."""
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    return lines + [f"| {' | '.join([name, *cells(name)])} |" for name in names]


def _shown(figure: dict[str, Any], digits: int = 3) -> str:
    deviation = figure["deviation"]
    return f"{figure['mean']:.{digits}f}" + (f" ({deviation:.{digits}f})" if deviation is not None else "")


def _sentence(result: dict[str, Any]) -> str:
    """What was run, and what is missing."""
    done, planned = len(result["runs"]), result["planned_runs"]
    missing = "" if done == planned else f" {planned - done} of {planned} runs are missing."
    note = f" ({result['note']})" if result["note"] else ""
    return (
        f"{result['training']['seconds']:g} s of CPU time a run, {result['seeds']} seeds; {result['machine']}, commit "
        f"{result['commit']}{note}.{missing}"
    )


def plane_table(result: dict[str, Any]) -> str:
    """W2 of one and four calls on every data set, in the order of the mean of one call over the data sets."""
    rows = {(row["method"], row["data"], row["calls"]): row for row in result["summary"]}
    data = list(result["data_w2"])

    def one_call(method: str) -> float:
        return sum(rows[method, name, 1]["mean"] for name in data) / len(data)

    def cells(method: str) -> list[str]:
        steps = sum(rows[method, name, 1]["steps"] for name in data) / len(data)
        return [f"{steps:.0f}", *(_shown(rows[method, name, calls]) for name in data for calls in CALLS)]

    names = sorted({method for method, _, _ in rows}, key=one_call)
    head = "| method | steps | " + " | ".join(f"{name}, {calls}" for name in data for calls in CALLS) + " |"
    floors = ", ".join(f"{floor:.3f} ({name})" for name, floor in result["data_w2"].items())
    text = f"{_sentence(result)} W2 of 1, 2 and 4 calls; two samples of the data are apart by {floors}."
    return "\n".join([text, "", *_table(head, names, cells)])


def digits_table(result: dict[str, Any]) -> str:
    """Frechet distance and the judge's reading of 1, 2 and 4 calls, in the order of the distance of one."""
    rows = {(row["method"], row["calls"]): row for row in result["summary"]}

    def cells(method: str) -> list[str]:
        distances = [_shown(rows[method, calls]["frechet"], 2) for calls in CALLS]
        shares = [_shown(rows[method, calls]["class_accuracy"]) for calls in CALLS]
        return [f"{rows[method, 1]['steps']:.0f}", *distances, *shares]

    names = sorted({method for method, _ in rows}, key=lambda method: rows[method, 1]["frechet"]["mean"])
    columns = [f"{kind}, {calls}" for kind in ("Frechet", "read right") for calls in CALLS]
    head = "| method | steps | " + " | ".join(columns) + " |"
    real = result["real"]
    text = (
        f"{_sentence(result)} Frechet distance in pixels, and the share that the judge reads as the class asked for, "
        f"of 1, 2 and 4 calls; {real['pictures']} held-out digits have {real['frechet']:.2f} and "
        f"{real['class_accuracy']:.3f}."
    )
    return "\n".join([text, "", *_table(head, names, cells)])
