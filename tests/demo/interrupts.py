"""Ctrl-C while a program imports its parts: imported first, this module lets it end the program without a traceback."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt again. Called once everything is imported."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
