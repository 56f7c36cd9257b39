"""Finds the words of a text that mix scripts, for approvers. What is invisible there `visible_text` shows."""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Final

from fontTools.unicodedata import script_extension

from turnkeeper.visible_text import characters, is_hidden, shown_json

MAX_WORDS: Final = 32
MAX_WORD_LENGTH: Final = 64
"""Characters of a marked word that are shown."""
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


def _joins(character: str) -> bool:
    """Returns True for a hidden character other than a space."""
    return is_hidden(character) and not unicodedata.category(character).startswith("Z")


@cache
def _word() -> re.Pattern[str]:
    """Returns the pattern of a word: `\\w` has no marks, and a mark belongs to the letter before it."""
    return re.compile(f"[\\w{characters('Mn', 'Mc', 'Me')}]+")
