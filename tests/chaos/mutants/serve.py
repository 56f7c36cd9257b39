"""Runs the service with one promise broken. `python -m tests.chaos.mutants.serve NAME serve …`."""

import sys

from tests.chaos.mutants.patches import PATCHES
from turnkeeper.__main__ import main

if __name__ == "__main__":
    PATCHES[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
