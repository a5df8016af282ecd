#!/usr/bin/env python3
"""Whether a training is complete: `python3 runs/complete.py OPTIONS`, the options of `tvmatch train`.

Exit code 0 if the folder of the run holds this training, complete; 1 otherwise. `tvmatch train` refuses a complete run
with the code of any bad input, and torchrun ends with 1 whatever its processes say; so a script that shall go on to
what follows asks here first, and leaves every refusal to `tvmatch train`. Nothing is written.
"""

import sys

from tvmatch.cli.train import read_config
from tvmatch.training.run_folder import RunCompleteError, open_run


def main(arguments: list[str]) -> int:
    """The exit code for these options."""
    try:
        config = read_config(arguments)
        open_run(config)
    except RunCompleteError:
        print(f"{config.run}: complete, not trained again", file=sys.stderr)
        return 0
    except (ValueError, OSError):
        return 1
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
