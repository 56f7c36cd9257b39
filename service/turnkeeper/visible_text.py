"""Makes visible what a text hides: controls, marks of direction, characters without a form. Knows no vendor."""

import re
import unicodedata
from functools import cache, lru_cache
from typing import Final

_BLANK: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\U00013441\U00013442\U00016fe4\U0001d159"
)
"""Letters, marks and symbols without a visible form, beyond the categories in _HIDDEN and variation selectors."""
MAX_MARKS: Final = 4
"""Nonspacing marks in a row, as in UTS #39, section 5.4: more of them cover the lines above and below."""
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"})
"""Unicode categories of what is escaped: controls, formats with direction marks, unassigned characters, spaces."""
_CONTROLS: Final = re.compile(r"[^\n\t -~\xa1-\xac\xae-\u02ff]")
"""What `visible` looks at: neither printable ASCII nor Latin letters, nor a newline or a tab."""
_PICTURE: Final = "\u2600-\u27bf\U0001f000-\U0001faff"
_EMOJI: Final = re.compile(
    f"((?<=[\u203c-\u3299\U0001f000-\U0001faff])\ufe0f|(?<=[0-9#*])\ufe0f(?=\u20e3)"
    f"|(?<=[\ufe0f{_PICTURE}])\u200d(?=[{_PICTURE}]))"
)
"""The two hidden characters that belong to emoji: one chooses the coloured form, one joins two into one."""


def visible(text: str) -> str:
    r"""Returns the text with an escape such as `\u001b` for each character that moves a cursor or is not seen.

    Newlines, tabs, all kinds of spaces and emoji stay as they are; marks beyond MAX_MARKS in a row are escapes, too.
    What a model, a tool or another caller wrote is printed on a terminal only through this.
    """
    if not _CONTROLS.search(text):
        return text
    parts = _EMOJI.split(text)
    parts[::2] = map(_without_hidden, parts[::2])
    return "".join(parts)


def shown_json(text: str) -> str:
    """Returns JSON of the same meaning with an escape for each invisible character, and for marks beyond MAX_MARKS.

    Invisible are spaces but the ordinary one, default-ignorable ones, direction marks, and those that are not assigned.
    """
    if text.isascii():
        return text
    return _escaped(text, {character for character in set(text) if character > "~" and is_hidden(character)})


@lru_cache(maxsize=4096)
def is_hidden(character: str) -> bool:
    """Returns True for a character that has no form of its own, spaces among them."""
    return unicodedata.category(character) in _HIDDEN or character in _BLANK or _selects_variation(character)


def characters(*categories: str) -> str:
    """Returns all characters of these Unicode categories from U+0300 to U+1FFFF."""
    return "".join(chr(number) for number in range(0x300, 0x20000) if unicodedata.category(chr(number)) in categories)


def _without_hidden(text: str) -> str:
    hidden = {
        sign for sign in set(text) if is_hidden(sign) and not (sign in "\n\t" or unicodedata.category(sign) == "Zs")
    }
    return _escaped(text, hidden)


def _escaped(text: str, hidden: set[str]) -> str:
    """Returns the text with escapes for these characters, and for marks beyond MAX_MARKS in a row."""
    bare = text if text.isascii() else _marks().sub(lambda match: match[1] + "".join(map(_escape, match[2])), text)
    return bare.translate({ord(character): _escape(character) for character in hidden})


def _selects_variation(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index]:02x}{units[index + 1]:02x}" for index in range(0, len(units), 2))


@cache
def _marks() -> re.Pattern[str]:
    """Returns the pattern of too many nonspacing marks in a row: those that may be there, then the rest."""
    mark = f"[{characters('Mn', 'Me')}]"
    return re.compile(f"({mark}{{{MAX_MARKS}}})({mark}+)")
