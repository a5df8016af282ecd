"""`python -m tvmatch`, which torchrun can start: torchrun --nproc-per-node 8 -m -- tvmatch train ..."""

import sys

from tvmatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
