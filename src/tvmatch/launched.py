"""What a launcher (torchrun, `runs/train_slurm.sh`) told this process; without torch, which takes long to import."""

import os


def launched() -> tuple[int, int] | None:
    """(rank, number of processes), from RANK and WORLD_SIZE; None unless both are set, as a launcher does.

    `ValueError` where they are no whole numbers, or no rank of so many.
    """
    told = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if None in told:
        return None
    try:
        rank, count = map(int, told)
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count:
        raise ValueError(
            f"RANK={told[0]!r} and WORLD_SIZE={told[1]!r} in the environment are not the numbers of a process and of "
            "all of them; start with torchrun, or unset both."
        )
    return rank, count
