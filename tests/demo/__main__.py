"""The program of `make demo`. Ctrl-C ends it quietly from here on."""

import sys

from turnkeeper import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()
    from tests.demo import tour

    sys.exit(tour.main())
