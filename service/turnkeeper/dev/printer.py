"""Prints the lines of `turnkeeper dev` in a thread of its own: a terminal that takes none delays no turn."""

import contextlib
import queue
import threading
from typing import Final

from rich.text import Text

from turnkeeper.terminal.console import Output, Part, styled

_ARROW: Final = " → "
_ARROW_BELOW: Final = "\n         → "
END_TIME: Final = 0.5
"""Seconds that the last lines have to be written at the end."""


class Printer:
    """A queue of lines, and the thread that prints them."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lines: queue.SimpleQueue[tuple[Text, Text] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="printer")
        self._thread.start()

    def show(self, *parts: Part, command: Part = "") -> None:
        """Prints one line, soon. Can be called from any thread.

        `command` comes after an arrow; on a line of its own if the terminal is too narrow for both.
        """
        self._lines.put((styled(*parts), styled(command)))

    def close(self) -> None:
        """Waits until all lines are written, END_TIME at most."""
        self._lines.put(None)
        self._thread.join(END_TIME)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone: the server goes on
                # The terminal folds what is too long: a command that is marked and copied stays one line.
                self._output.console.print(self._arranged(*line), soft_wrap=True)

    def _arranged(self, text: Text, command: Text) -> Text:
        if not command:
            return text
        fits = text.cell_len + len(_ARROW) + command.cell_len <= self._output.console.width
        return Text.assemble(text, _ARROW if fits else _ARROW_BELOW, command)
