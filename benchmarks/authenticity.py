#!/usr/bin/env python3
"""What authenticity is of digits that nobody made: held-out ones, and copies, among all others and a fifth of them.

    python benchmarks/authenticity.py --json benchmarks/results/authenticity_cpu.json      (seconds)

In pixels. The fifth is drawn anew for each of 20 seeds; told are the means and the least and largest.
"""

import argparse
import json
from pathlib import Path

import torch

from tvmatch import __version__
from tvmatch.data.digits import digits_source
from tvmatch.metrics.manifold import authenticity
from tvmatch.provenance import commit

SEEDS, SHARE = 20, 0.2


def pixels(split: str) -> torch.Tensor:
    return torch.tensor(digits_source(split).images).flatten(1).double() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    known, held_out = pixels("train"), pixels("held_out")
    result = {"tvmatch": __version__, "torch": torch.__version__, "commit": commit()}
    result |= {"known": len(known), "held_out": len(held_out), "kept": round(SHARE * len(known)), "seeds": SEEDS}
    samples = {"held_out": held_out, "copies_of_all": known}
    result["among_all"] = {name: authenticity(known, each) for name, each in samples.items()}
    found = {name: [] for name in samples}
    for seed in range(SEEDS):
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        kept = known[order[: result["kept"]]]
        for name, each in samples.items():
            found[name].append(authenticity(kept, each))
    result["among_a_fifth"] = {
        name: {"mean": sum(values) / SEEDS, "least": min(values), "largest": max(values)}
        for name, values in found.items()
    }
    for name in samples:
        fifth = result["among_a_fifth"][name]
        print(
            f"{name}: {result['among_all'][name]:.3f} among all {len(known)}, {fifth['mean']:.3f} among a fifth "
            f"({fifth['least']:.3f} to {fifth['largest']:.3f})"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
