#!/usr/bin/env python3
"""What a row of `tvmatch evaluate` without --features takes: the distance in pixels, by products and by covariances.

    python benchmarks/own_values.py --json benchmarks/results/own_values_cpu.json      (one thread, minutes)
    python benchmarks/own_values.py --tiny                                             (does it run)

Random pictures; by products of data and samples, and for the smaller ones also by covariances, whose seconds grow with
the sixth power of the side; `taken` is what the command chooses. `first` also makes what later rows have from it.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from tvmatch import __version__
from tvmatch.data.arrays import source_from_arrays
from tvmatch.metrics.own_values import OwnValues
from tvmatch.provenance import commit

CASES = [(20_000, 32, 2000), (20_000, 64, 2000)]  # pictures, pixels a side, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for pictures, size, samples in [(60, 8, 20)] if options.tiny else CASES:
        random = np.random.default_rng(0)
        data, drawn = (random.integers(0, 256, (n, size, size, 3), np.uint8) for n in (pictures, samples))
        ways = {"products": False, "covariances": True} if size <= 32 else {"products": False}
        for way, quicker in ways.items():
            values = OwnValues(source_from_arrays(data, None))
            taken = values._covariance_is_quicker(samples) == quicker  # by the command
            values._covariance_is_quicker = lambda _, quicker=quicker: quicker
            times = []
            for _ in range(2):
                began = time.perf_counter()
                distance = values.distance(drawn)
                times.append(round(time.perf_counter() - began, 1))
            row = {"pictures": pictures, "size": size, "samples": samples, "way": way, "taken": taken}
            rows.append(row | {"distance": distance, "seconds_first": times[0], "seconds_next": times[1]})
            print(rows[-1], flush=True)
    if options.json:
        told = {"machine": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
        told |= {"tvmatch": __version__, "commit": commit(), "rows": rows}
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
