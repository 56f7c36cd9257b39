"""The one exception by which a decision asks for newer input."""


class DecideAgain(Exception):
    """Raised by a decision when what its caller had read beside the snapshot is out of date: it must be read again."""
