"""What model servers send in their own words, and what it means here: the data is in `dialect.toml`."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnkeeper.domain.message import FinishReason
from turnkeeper.model.failure import Reason

_DATA: Final = tomllib.loads(Path(__file__).with_name("dialect.toml").read_text(encoding="utf-8"))


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """Returns a pattern that fits where one of these does, in any case of letters."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sentences:
    """Texts of errors that mean the same."""

    reason: Reason
    pattern: re.Pattern[str]
    always: bool
    """True if the text counts at every status, and before an error's code."""


_NO_LETTER: Final = re.compile("[^a-z]")


def plain_word(word: str) -> str:
    """Returns a finish word in small letters alone: FINISH_REASON_STOP and `stop` are one word."""
    return _NO_LETTER.sub("", word.strip().lower().removeprefix("finish_reason_"))


def _finish_of(name: str) -> FinishReason | Reason | None:
    """Returns the meaning of a group of finish words: how an answer ended, why it does not count, or not yet ended."""
    if name == "NOT_YET":
        return None
    return FinishReason[name] if name in ("STOP", "LENGTH", "TOOL_CALLS") else Reason[name]


FINISH: Final[Mapping[str, FinishReason | Reason | None]] = {
    plain_word(word): _finish_of(name) for name, words in _DATA["finish"].items() for word in words
}
"""What a finish word means, by its `plain_word`; None: the answer has not ended."""
REASONING_FIELDS: Final = frozenset(_DATA["reasoning"]["fields"])
"""Fields of a message that hold a model's reasoning."""
REASONING_PARTS: Final = frozenset(_DATA["reasoning"]["parts"])
"""Types of a content's parts that hold reasoning."""
IGNORED_PARTS: Final = frozenset(_DATA["reasoning"]["ignored"])
"""Types of a content's parts that do not belong to the answer."""
CODES: Final[Mapping[str, Reason]] = {
    word: Reason[reason] for reason, words in _DATA["codes"].items() for word in words
}
"""The meaning of an error's code, type or status, in small letters."""
DEFINITE: Final[frozenset[int]] = frozenset(_DATA["statuses"]["definite"])
"""HTTP statuses at which an error's text means nothing, unless it counts always."""
SENTENCES: Final = tuple(
    Sentences(Reason[group["reason"]], _any_of(group["patterns"]), group.get("always", False))
    for group in _DATA["sentences"]
)
"""The meaning of an error's text, in the order of the file."""
SILENT: Final[frozenset[str]] = frozenset(_DATA["fields"]["silent"])
"""Fields of a request that are left out silently for a server that refuses them."""
WARNED: Final[frozenset[str]] = frozenset(_DATA["fields"]["warned"])
"""Fields of a request that are left out with a WARNING for a server that refuses them."""
ALSO_CALLED: Final[Mapping[str, tuple[str, ...]]] = {
    field: tuple(names) for field, names in _DATA["fields"]["also_called"].items()
}
"""Other names of a field in the text of a refusal, as regular expressions."""
ABOUT_MESSAGES: Final = _any_of(_DATA["refusals"]["messages"])
"""The text of an error that is about the messages of the request."""
ABOUT_OTHERS: Final = frozenset(_DATA["refusals"]["other"])
"""Codes of an error that is about something else than the messages."""
REFUSAL: Final = _any_of(_DATA["refusals"]["patterns"])
"""The text around the name of a field that is refused."""
LIMIT_NAMES: Final[tuple[str, ...]] = tuple(_DATA["limit"]["names"])
"""The names of the output limit."""
