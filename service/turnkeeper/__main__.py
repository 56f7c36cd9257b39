"""The program `turnkeeper`, also as `python -m turnkeeper`. Ctrl-C ends it quietly from here on."""

import sys
from collections.abc import Sequence

from turnkeeper import interrupts


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns the exit status."""
    interrupts.end_at_once()
    from turnkeeper import command_line  # noqa: PLC0415 - it takes a while, as all imports do

    return command_line.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
