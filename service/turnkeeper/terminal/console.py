"""What is printed, and how: the one way from a string to the terminal. Nothing else in this room prints.

Every string passes through `visible`, ours and those of others; markup, emoji codes and highlighting of rich are off.
"""

import os
import sys
import termios
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TextIO

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.table import Table
from rich.text import Text

from turnkeeper.visible_text import visible

Part = str | tuple[str, str]
"""Text to print, or text with its style in the words of rich: `bold`, `red`, `dim`."""
WIDE: Final = 100_000
"""Columns of a file or a pipe: no line of it is folded or cut."""
NARROW: Final = 22
"""Columns of the widest cell in a column of a table that is never folded."""


class Output:
    """One stream on which a command prints, standard output or standard error.

    On a terminal it has colours and the terminal's width; NO_COLOR takes the colours away. Into a file or a pipe go
    plain lines without an escape code, and no line is folded.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self.is_terminal = stream.isatty() and environ.get("TERM", "") not in ("dumb", "unknown")
        self.console: Final = Console(
            file=stream,
            force_terminal=self.is_terminal,
            color_system="auto" if self.is_terminal and not environ.get("NO_COLOR") else None,
            width=None if self.is_terminal else WIDE,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def show(self, *parts: Part, end: str = "\n") -> None:
        """Prints the parts as one text."""
        self.console.print(styled(*parts), end=end, soft_wrap=not self.is_terminal)

    def drain(self) -> None:
        """Returns once all that was printed has reached the terminal."""
        self.console.file.flush()
        if self.is_terminal:
            termios.tcdrain(self.console.file.fileno())

    def rewrite(self, count: int, lines: Iterable[Iterable[Segment]]) -> None:
        """Erases the last `count` lines, and prints others: as rich has rendered them, none wider than the terminal."""
        up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * count
        segments = [part for line in lines for part in (*map(_visible, line), Segment.line())]
        with self.console:  # at once
            if up:
                self.console.control(Control(ControlType.CARRIAGE_RETURN, *up))
            self.console.print(Segments(segments), end="")

    def show_beside(self, label: Part, *parts: Part) -> None:
        """Prints the parts beside a label. Each of their lines begins in the second column, so none looks like a label.

        On a terminal lines are folded at its width.
        """
        name, text = styled(label), styled(*parts)
        lines = list(text.split(allow_blank=True))
        if self.is_terminal:
            lines = list(text.wrap(self.console, max(20, self.console.width - name.cell_len - 2)))
        for line in lines:
            line.rstrip()
            self.console.print(name, line, sep="  ", soft_wrap=True)
            name = Text(" " * name.cell_len)

    def show_table(self, header: Sequence[str], rows: Sequence[Sequence[Part]]) -> None:
        """Prints rows in columns under a header. On a narrow terminal the wide columns are folded, and none is cut."""
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        cells = [[styled(cell) for cell in row] for row in rows]
        for number, name in enumerate(header):
            is_narrow = all(row[number].cell_len <= NARROW for row in cells) and name != header[-1]
            table.add_column(styled(name), overflow="fold", no_wrap=is_narrow)
        for row in cells:
            table.add_row(*row)
        self.console.print(table)

    def show_json(self, message: Message, *, one_line: bool = False) -> None:
        """Prints a message as protobuf's JSON, in ASCII; as one line for a command that goes on."""
        text = MessageToJson(message, indent=None if one_line else 2)
        self.console.print(styled(text), soft_wrap=True)


def _visible(segment: Segment) -> Segment:
    return Segment(visible(segment.text), segment.style)


def styled(*parts: Part) -> Text:
    """Returns text for rich in which everything is visible, and nothing is markup."""
    text = Text()
    for part in parts:
        plain, style = (part, "") if isinstance(part, str) else part
        text.append(visible(plain), style=style or None)
    return text


def standard_output() -> Output:
    """Returns the output of this process. A character that its encoding does not have becomes an escape."""
    return _of(sys.stdout)


def standard_error() -> Output:
    """Returns where this process prints what went wrong, and questions while the output goes elsewhere."""
    return _of(sys.stderr)


def _of(stream: TextIO) -> Output:
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return Output(stream, os.environ)
