"""Turns a tool's exception into plain values where it is raised, so that no other code touches the exception.

An exception is the tool author's code: its `__str__` may raise or block, and its text may hold a secret.
"""

import traceback
from dataclasses import dataclass
from typing import Final

from turnkeeper.tools.contract import ToolError
from turnkeeper.tools.results import UnfitResult

MOST_FRAMES: Final = 20
"""The most frames that are kept of a traceback: the innermost ones."""
LONGEST_TEXT: Final = 500
"""The most characters that are kept of an exception's text."""
LONGEST_NAME: Final = 100
"""The most characters that are kept of the name of a class, a module or a function."""
_RUNNERS: Final = ("turnkeeper.tools.python", "turnkeeper.tools.threads", "turnkeeper.tools.coroutines")
"""Modules that run a tool's function. Their frames are the same for every tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One exception of a tool."""

    kind: str
    """The name of its class."""
    message: str | None
    """The message for the model: that of a ToolError or UnfitResult, None for any other exception."""
    frames: tuple[str, ...]
    """`module:line function`, the outermost first."""
    text: str
    """The exception's text. It is content: it is logged only with `--record-content`, and no model receives it."""


class ToolFailed(Exception):
    """A tool raised the exception that `failure` describes. A source of tools raises this one in its place."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind)
        self.failure = failure


def failure_of(error: BaseException) -> Failure:
    """Returns the exception as plain values. Raises nothing, whatever the exception's own methods do."""
    if isinstance(error, ToolFailed):
        return error.failure
    text = _text(error)
    return Failure(
        kind=_kind(error),
        message=text if isinstance(error, ToolError | UnfitResult) else None,
        frames=_frames(error),
        text=(text or "")[:LONGEST_TEXT],
    )


def _kind(error: BaseException) -> str:
    """Returns the name of the exception's class."""
    try:
        # str.__str__ makes a plain str of a subclass, whose own methods would run later.
        return str.__str__(type(error).__name__)[:LONGEST_NAME]
    except BaseException:  # noqa: BLE001 - a metaclass may do anything
        return "BaseException"


def _text(error: BaseException) -> str | None:
    """Returns the exception's text, or None if it has none that can be read."""
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - the exception's own method may do anything
        return None


def _frames(error: BaseException) -> tuple[str, ...]:
    """Returns the innermost frames without those of the service; empty if the traceback cannot be read."""
    try:
        frames = [
            (str.__str__(str(frame.f_globals.get("__name__", "?"))), line, str.__str__(frame.f_code.co_qualname))
            for frame, line in traceback.walk_tb(error.__traceback__)
        ]
    except BaseException:  # noqa: BLE001 - a module's `__name__` may be any object
        return ()
    theirs = [frame for frame in frames if frame[0] not in _RUNNERS][-MOST_FRAMES:]
    return tuple(f"{module[:LONGEST_NAME]}:{line} {name[:LONGEST_NAME]}" for module, line, name in theirs)
