"""Makes whole text of what a server cut inside a character: escaped halves, and raw bytes of UTF-8."""

import json
import re

import orjson

from turnkeeper.domain.json_text import UnfitJson, check_levels
from turnkeeper.model.failure import Reason, failure

_RAW_TAIL = re.compile("[\udcc2-\udcf4][\udc80-\udcbf]{0,2}$")
"""The beginning of a character's bytes at the end of a text, as `surrogateescape` shows them."""
_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Escaped halves without the other half, once pairs are joined; the rest of the range stands for raw bytes."""


def decoded(event: bytes) -> object:
    """Returns the event's JSON value. Raises ModelFailure if it is none, or is nested too deep.

    A half of a character, escaped or as raw bytes, stays in its text as a surrogate: its other half is to come.
    """
    try:
        check_levels(event)
        return orjson.loads(event)
    except UnfitJson:
        raise failure(Reason.MALFORMED) from None
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(event.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        raise failure(Reason.MALFORMED) from None


def split_half(text: str) -> tuple[str, str]:
    """Returns the text up to a last character that is cut, and the half of that character, often none."""
    if not text or not "\ud800" <= text[-1] <= "\udfff":
        return text, ""
    if text[-1] <= "\udbff":
        return text[:-1], text[-1]
    tail = _RAW_TAIL.search(text)
    if tail is None or len(tail[0]) >= _length(tail[0][0]):
        return text, ""
    return text[: tail.start()], tail[0]


def whole(text: str) -> str:
    """Returns the text with the halves of characters joined, and U+FFFD for a half without the other."""
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return _LONE.sub("\ufffd", joined).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def _length(lead: str) -> int:
    """Returns how many bytes the character has that begins with this byte."""
    return 2 if lead < "\udce0" else 3 if lead < "\udcf0" else 4
