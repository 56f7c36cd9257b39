"""What an approver sees of a text: nothing invisible, and the words that mix scripts by name."""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Final

from fontTools.unicodedata import script_extension

MAX_WORDS: Final = 32
MAX_WORD_LENGTH: Final = 64
"""Characters of a marked word that are shown."""
_BLANK: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\U00013441\U00013442\U00016fe4\U0001d159"
)
"""Letters, marks and symbols without a visible form, beyond the categories in _HIDDEN and variation selectors."""
MAX_MARKS: Final = 4
"""Nonspacing marks in a row, as in UTS #39, section 5.4: more of them cover the lines above and below."""
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"})
"""Unicode categories of what is escaped: controls, formats with direction marks, unassigned characters, spaces."""
_SCRIPTS_TOGETHER: Final = {
    "Hani": frozenset({"Hani", "Hanb", "Jpan", "Kore"}),
    "Hira": frozenset({"Hira", "Jpan"}),
    "Kana": frozenset({"Kana", "Jpan"}),
    "Hang": frozenset({"Hang", "Kore"}),
    "Bopo": frozenset({"Bopo", "Hanb"}),
}
"""The augmented script sets of UTS #39, section 5.1: scripts that one language writes together."""
_WITH_LATIN: Final = (frozenset({"Latn", "Jpan"}), frozenset({"Latn", "Hanb"}), frozenset({"Latn", "Kore"}))
"""What a highly restrictive word may mix with Latin: UTS #39, section 5.2."""
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")


def shown_json(text: str) -> str:
    """Returns JSON of the same meaning with an escape for each invisible character, and for marks beyond MAX_MARKS.

    Invisible are spaces but the ordinary one, default-ignorable ones, direction marks, and those that are not assigned.
    """
    if text.isascii():
        return text
    bare = _marks().sub(lambda match: match[1] + "".join(map(_escape, match[2])), text)
    hidden = [character for character in set(bare) if character > "~" and _is_hidden(character)]
    return bare.translate({ord(character): _escape(character) for character in hidden})


def mixed_script_words(text: str) -> list[str]:
    """Returns the words of JSON whose letters mix scripts as no language does, each once, in their order.

    A word may have one script, or Latin with those of Chinese, Japanese or Korean: the level "highly restrictive" of
    UTS #39. At most 32 words, of at most 64 characters each.
    """
    if text.isascii():
        return []
    mixed: dict[str, None] = {}
    for word in _words(text):
        if not word.isascii() and word not in mixed and _mixes(frozenset(word)):
            mixed[word] = None
            if len(mixed) == MAX_WORDS:
                break
    return [shown_json(word[:MAX_WORD_LENGTH]) for word in mixed]


def _words(text: str) -> Iterator[str]:
    """Yields the runs of letters, marks and digits. A hidden character does not end a word, however it is written."""
    joined = _ESCAPE.sub(lambda match: "" if match[1].startswith("u") else " ", text)
    hidden = {ord(character): None for character in set(joined) if character > "~" and _joins(character)}
    for match in _word().finditer(joined.translate(hidden)):
        yield match[0]


@lru_cache(maxsize=4096)
def _mixes(characters: frozenset[str]) -> bool:
    """Returns True if a word of these characters is not highly restrictive."""
    sets = [scripts for scripts in map(_scripts, characters) if scripts]
    if not sets or frozenset.intersection(*sets):
        return False
    return not any(all(scripts & together for scripts in sets) for together in _WITH_LATIN)


@lru_cache(maxsize=4096)
def _scripts(character: str) -> frozenset[str]:
    """Returns the scripts that use the character, with what is written together; empty if all use it."""
    scripts = script_extension(character)
    if scripts & {"Zyyy", "Zinh", "Zzzz"}:
        return frozenset()
    return frozenset().union(*(_SCRIPTS_TOGETHER.get(script, {script}) for script in scripts))


@lru_cache(maxsize=4096)
def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN or character in _BLANK or _selects_variation(character)


def _joins(character: str) -> bool:
    """Returns True for a hidden character other than a space."""
    return _is_hidden(character) and not unicodedata.category(character).startswith("Z")


def _selects_variation(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index]:02x}{units[index + 1]:02x}" for index in range(0, len(units), 2))


@cache
def _word() -> re.Pattern[str]:
    """Returns the pattern of a word: `\\w` has no marks, and a mark belongs to the letter before it."""
    return re.compile(f"[\\w{_characters('Mn', 'Mc', 'Me')}]+")


@cache
def _marks() -> re.Pattern[str]:
    """Returns the pattern of too many nonspacing marks in a row: those that may be there, then the rest."""
    mark = f"[{_characters('Mn', 'Me')}]"
    return re.compile(f"({mark}{{{MAX_MARKS}}})({mark}+)")


def _characters(*categories: str) -> str:
    return "".join(chr(number) for number in range(0x300, 0x20000) if unicodedata.category(chr(number)) in categories)
