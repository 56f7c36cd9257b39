"""The exception by which a decision asks for newer input."""


class DecideAgain(Exception):
    """Raised by a decision if what was read beside its snapshot is out of date: it must be read again."""
