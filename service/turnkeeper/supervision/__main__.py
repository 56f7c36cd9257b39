"""The supervisor's process: `turnkeeper serve --processes N` becomes it. Ctrl-C ends it quietly from here on."""

import sys

from turnkeeper import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()
    from turnkeeper.supervision import program

    sys.exit(program.main())
