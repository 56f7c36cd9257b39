"""The exit status of every command of this room. docs/guide/command-line.md lists them."""

from enum import IntEnum, unique

from turnkeeper import interrupts


@unique
class ExitCode(IntEnum):
    """How a command ended. A script may rely on the numbers."""

    OK = 0
    """It did what was asked."""
    FAILED = 1
    """The turn failed, or a check found something."""
    USAGE = 2
    """An argument, a variable or a file is wrong; nothing was sent."""
    WAITS = 3
    """The turn waits for the decision of a person, and the command does not decide."""
    NO_ANSWER = 4
    """Nothing answered at the address, or the connection broke: what was asked may have been done."""
    REFUSED = 5
    """The service refused it: not found, not allowed, decided already, over a limit."""
    INTERRUPTED = interrupts.INTERRUPTED
    """Ctrl-C ended it."""
