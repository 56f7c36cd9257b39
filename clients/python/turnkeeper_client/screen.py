"""What a terminal must be sent so that it shows the text of an answer, and nothing else, also where it begins anew."""

import os
import re
import sys
import unicodedata

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
        self._line = ""
        """The line in which the message of the last piece begins, and all that was printed since."""
        self._begin = 0
        """Where in it that message begins."""
        self._message_id = ""

    def added(self, text: str, message_id: str, *, restart: bool) -> str:
        """Returns what is to be printed for a piece: its text, after what takes back the text that no longer counts."""
        size = terminal_size()
        shown = text if size is None else visible(text)
        before = ""
        if restart and (self._begin < len(self._line) or not self._message_id):
            back = None if size is None else taken_back(self._line, self._begin, *size)
            before = ANEW if back is None else back
            self._line, self._begin = ("", 0) if back is None else (self._line[: self._begin], self._begin)
        elif not restart and message_id != self._message_id:
            self._line = self._line.rpartition("\n")[2]
            self._begin = len(self._line)
        self._message_id = message_id
        self._line += shown
        return before + shown


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
    row, column = (first[0] + 1, 0) if first[1] == columns else first  # the next character would have wrapped
    up = last[0] - row
    if up >= lines:
        return None
    return (f"\x1b[{up}A" if up > 0 else "") + "\r" + (f"\x1b[{column}C" if column else "") + "\x1b[J"


def place(text: str, columns: int) -> tuple[int, int] | None:
    """Returns row and column of the cursor after the text, both from 0. Returns None if it is not certain.

    The column after a line's last one means that the next character wraps.
    """
    row = column = 0
    for character in text:
        if character == "\n":
            row, column = row + 1, 0
            continue
        width = TAB - column % TAB if character == "\t" else width_of(character)
        if width is None or (character == "\t" and column + width >= columns):  # terminals differ at the edge
            return None
        row, column = (row + 1, width) if column + width > columns else (row, column + width)
    return row, column


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
