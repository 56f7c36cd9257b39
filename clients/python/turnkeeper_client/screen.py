"""What a terminal must be sent so that it shows the text of an answer, and nothing else, also where it begins anew."""

import os
import re
import sys
import unicodedata
from typing import NamedTuple

ANEW = "\n(the answer begins anew)\n"
"""What is printed where the text before it cannot be erased: into a file, or where it has left the screen."""
TAB = 8
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that move the cursor or change the order of others; a newline and a tab do what is expected of them."""
_UNCERTAIN = re.compile("[\u1100-\u11ff\ufe0f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")
"""Characters whose width depends on those beside them, and on the terminal."""


class Screen:
    """What a loop has printed of its answers: each piece and nothing else, from the beginning of a line on."""

    def __init__(self) -> None:
        self._before = ""
        """The line in which the message of the last piece begins, up to that message."""
        self._printed: list[str] = []
        """What was printed of that message."""
        self._message_id = ""

    def added(self, text: str, message_id: str, *, restart: bool) -> str:
        """Returns what is to be printed for a piece: its text, after what takes back the text that no longer counts."""
        size = terminal_size()
        shown = text if size is None else visible(text)
        back = ""
        if restart:
            back = self._taken_back(size)
        elif message_id != self._message_id:
            self._before = (self._before + "".join(self._printed)).rpartition("\n")[2]
            self._printed = []
        self._message_id = message_id
        if shown:
            self._printed.append(shown)
        return back + shown

    def _taken_back(self, size: tuple[int, int] | None) -> str:
        """Returns what is printed before a message that begins anew: an erasure, or ANEW where that cannot be."""
        if self._message_id and not self._printed:
            return ""
        printed = "".join(self._printed)
        self._printed = []
        back = None if size is None else taken_back(self._before + printed, len(self._before), *size)
        if back is None:
            self._before = ""
            return ANEW
        return back


def terminal_size() -> tuple[int, int] | None:
    """Returns columns and lines of the terminal that standard output is, or None if it is none that can erase."""
    try:
        if not sys.stdout.isatty() or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
            return None
        return os.get_terminal_size(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # replaced by an object of another kind, or closed
        return None


def visible(text: str) -> str:
    """Returns the text with an escape for each character that would move the cursor or the text."""
    return _HIDDEN.sub(lambda character: f"\\u{ord(character[0]):04x}", text)


def taken_back(line: str, begin: int, columns: int, lines: int) -> str | None:
    """Returns what erases `line` from its character `begin` on. Returns None if that cannot be done for certain.

    Nothing is left to erase, it is no longer on the screen, or the width of a character depends on the terminal.
    """
    if begin == len(line):
        return None
    first, last = place(line[:begin], columns), place(line, columns)
    if first is None or last is None:
        return None
    up = last.row - first.row
    if up >= lines:
        return None
    back = (f"\x1b[{up}A" if up > 0 else "") + "\r"
    if first.column == columns:  # only a character at the edge leaves the cursor there
        return f"{back}\x1b[J{line[first.begin : begin]}"
    return back + (f"\x1b[{first.column}C" if first.column else "") + "\x1b[J"


class Place(NamedTuple):
    """Where the cursor is after a text, from 0. The column after a line's last one: the next character wraps."""

    row: int
    column: int
    begin: int
    """The first character of the row, by its index in the text."""


def place(text: str, columns: int) -> Place | None:
    """Returns where the cursor is after the text. Returns None if it is not certain."""
    row = column = begin = 0
    for index, character in enumerate(text):
        if character == "\n":
            row, column, begin = row + 1, 0, index + 1
            continue
        width = TAB - column % TAB if character == "\t" else width_of(character)
        if width is None or (character == "\t" and column + width >= columns):  # terminals differ at the edge
            return None
        if column + width > columns:
            row, column, begin = row + 1, 0, index
        column += width
    return Place(row, column, begin)


def width_of(character: str) -> int | None:
    """Returns how many columns a character takes; 0 for a mark on the one before, None if that is not certain."""
    if " " <= character <= "~":
        return 1
    category = unicodedata.category(character)
    if category in ("Mn", "Me"):
        return None if _UNCERTAIN.match(character) else 0
    if category in ("Cc", "Cf", "Cn", "Co", "Cs", "Mc") or _UNCERTAIN.match(character):
        return None
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
