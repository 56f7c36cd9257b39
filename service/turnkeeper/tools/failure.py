"""What a tool raised, as plain values. They are made where it was raised, so that nothing touches the exception later.

An exception is the tool author's code: its `__str__` may raise or block, and its text may hold a secret.
"""

import traceback
from dataclasses import dataclass
from typing import Final

from turnkeeper.tools.contract import ToolError
from turnkeeper.tools.results import UnfitResult

MOST_FRAMES: Final = 20
"""Frames that are kept of a traceback: the innermost ones."""
LONGEST_TEXT: Final = 500
"""Characters that are kept of an exception's text."""
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
    """A tool raised; `failure` is what. A source of tools raises it instead of the exception itself."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind)
        self.failure = failure


def failure_of(error: BaseException) -> Failure:
    """Returns what the exception is. Raises nothing, whatever the exception's own methods do."""
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
    try:
        return str.__str__(type(error).__name__)
    except BaseException:  # noqa: BLE001 - a metaclass may do anything
        return "BaseException"


def _text(error: BaseException) -> str | None:
    """Returns the exception's text, or None if it has none that can be read."""
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - the exception's own method may do anything
        return None


def _frames(error: BaseException) -> tuple[str, ...]:
    try:
        frames = [
            (str(frame.f_globals.get("__name__", "?")), line, frame.f_code.co_qualname)
            for frame, line in traceback.walk_tb(error.__traceback__)
        ]
    except BaseException:  # noqa: BLE001 - a module may have any name
        return ()
    return tuple(f"{module}:{line} {name}" for module, line, name in frames if module not in _RUNNERS)[-MOST_FRAMES:]
