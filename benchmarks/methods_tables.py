"""What methods_2d.py, methods_digits.py, methods_cost.py and the CIFAR-10 runs found, as tables for docs/methods.md."""

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from cifar10_runs import Run, alike
from methods_plot import CALLS
from methods_runs import budget_of


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
        f"{budget_of(result['training'])} a run, {result['seeds']} seeds; {result['machine']}, commit "
        f"{result['commit']}{note}.{missing}"
    )


def _steps(result: dict[str, Any], method: str) -> str:
    """Mean, and least to largest where they differ from run to run."""
    steps = [row["steps"] for row in result["runs"] if row["method"] == method]
    return f"{mean(steps):.0f}" + (f" ({min(steps)} to {max(steps)})" if min(steps) < max(steps) else "")


def plane_table(result: dict[str, Any]) -> str:
    """W2 of one and four calls on every data set, in the order of the mean of one call over the data sets."""
    rows = {(row["method"], row["data"], row["calls"]): row for row in result["summary"]}
    data = list(result["data_w2"])

    def one_call(method: str) -> float:
        return sum(rows[method, name, 1]["mean"] for name in data) / len(data)

    def cells(method: str) -> list[str]:
        return [_steps(result, method), *(_shown(rows[method, name, calls]) for name in data for calls in CALLS)]

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
        return [_steps(result, method), *distances, *shares]

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


def cost_table(result: dict[str, Any]) -> str:
    """Time and peak memory of a step of every method, beside flow matching, the cheapest first."""
    rows = sorted(result["rows"], key=lambda row: row["milliseconds"])
    base = next(row for row in rows if row["objective"] == "flow-matching")
    guided = "no guidance" if float(result["guidance"]) == 1 else f"w = {result['guidance']}"
    lines = [
        f"{result['network']}, {result['data']}, batch {result['batch']}, {guided}; {result['device']}, torch "
        f"{result['torch']}, commit {result['commit']}.",
        "",
        "| method | ms | times flow matching | arithmetic alone | peak, GiB | times flow matching |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["objective"] + (f", every {row['terminal_every']}th" if row["terminal_every"] > 1 else "")
        cells = [name, f"{row['milliseconds']:.1f}", f"{row['times_flow_matching']:.2f}"]
        cells += [f"{row['forward_passes'] / base['forward_passes']:.2f}"]
        cells += [f"{row['peak_gib']:.1f}", f"{row['memory_times_flow_matching']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cifar10_table(runs: Sequence[Run]) -> str:
    """Mean Frechet distance of each method over its seeds of one average and w, the deviations beside."""
    lines = [
        "| method | seeds | 1 call | 2 calls | 4 calls | deviation, 1 call | 2 calls | 4 calls |",
        "|" + "---|" * 8,
    ]
    for method in dict.fromkeys(run.method for run in runs):
        same = alike(runs, method)
        name = METHODS_OF_FOLDERS.get(method, method.replace("_", "-"))
        values = [[run.frechet(calls) for run in same] for calls in CALLS]
        means = [f"{mean(found):.{0 if mean(found) >= 99.5 else 1}f}" for found in values]
        deviations = [f"{stdev(found):.2f}" if len(found) > 1 else "" for found in values]
        lines.append(f"| {' | '.join([name, str(len(same)), *means, *deviations])} |")
    return "\n".join(lines)


METHODS_OF_FOLDERS = {"tvm": "terminal-velocity, every 4th"}  # as the recipe trains it


OF_THE_ISSUE = ("terminal-velocity", "mean-flow", "flow-matching")  # those on CIFAR-10 whatever they have here


def chosen_table(plane: dict[str, Any], digits: dict[str, Any]) -> str:
    """The other methods by the mean of their distances of one call: W2 on every set of points, Frechet on digits."""
    found = {(row["method"], row["data"]): row["mean"] for row in plane["summary"] if row["calls"] == 1}
    found |= {(row["method"], "digits"): row["frechet"]["mean"] for row in digits["summary"] if row["calls"] == 1}
    tasks = [*plane["data_w2"], "digits"]
    names = sorted({method for method, _ in found if ", " not in method and method not in OF_THE_ISSUE})
    means = {name: mean(found[name, task] for task in tasks) for name in names}

    def cells(name: str) -> list[str]:
        return [f"{means[name]:.3f}", *(f"{found[name, task]:.3f}" for task in tasks)]

    head = f"| method | mean of the four | {' | '.join(tasks)} |"
    return "\n".join(_table(head, sorted(names, key=means.__getitem__), cells))
