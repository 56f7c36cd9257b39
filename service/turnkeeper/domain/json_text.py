"""JSON text from outside, read in one way and with one limit of depth, whether a caller, a model or a tool sent it.

Text that is stored already was perhaps checked by a version with other limits. Its readers must not fail because of it.
"""

import json
import math
import re
from itertools import accumulate
from typing import Final

import orjson

MOST_LEVELS: Final = 64
"""Arrays and objects inside each other, at most. Every reader of JSON here and elsewhere takes that many."""
MOST_BRACKETS: Final = 32 * 1024
"""Arrays and objects in one text, at most: as many as fit into 64 KiB."""
NO_JSON: Final = "is not JSON"
"""What `problem_of` returns for a text that is not JSON at all."""
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_STEPS: Final = {"[": 1, "{": 1, "]": -1, "}": -1}
_MANY_DIGITS = re.compile(r"\d{309}")
"""As many as the largest number of 64 bits with a point has: a longer number may be infinite to other readers."""
_LARGE_EXPONENT = re.compile(r"[eE]\+?\d{3}")


class UnfitJson(ValueError):
    """The text is not JSON that every reader takes. The message follows the name of what has the text."""


def check_levels(text: str | bytes) -> None:
    """Raises UnfitJson if arrays and objects are nested deeper than MOST_LEVELS, or are more than MOST_BRACKETS.

    The text may not be JSON at all.
    """
    if isinstance(text, bytes):
        if text.count(b"[") + text.count(b"{") <= MOST_LEVELS:
            return
        text = text.decode(errors="replace")
    if text.count("[") + text.count("{") <= MOST_LEVELS:
        return
    bare = _STRING.sub("", text)
    is_large = bare.count("[") + bare.count("{") > MOST_BRACKETS
    brackets = _BRACKET.findall(bare[:MOST_BRACKETS] if is_large else bare)
    if max(accumulate(_STEPS[bracket] for bracket in brackets), default=0) > MOST_LEVELS:
        raise UnfitJson(f"is nested deeper than {MOST_LEVELS} levels")
    if is_large:
        raise UnfitJson(f"has more than {MOST_BRACKETS} arrays and objects")


def strict_value(text: str) -> object:
    """Returns the value of a text that a model can be sent as it is.

    Raises UnfitJson for anything else, such as NaN, half a character, or a number that no float can hold.
    """
    check_levels(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise UnfitJson(NO_JSON) from None


def problem_of(text: str) -> str:
    """Returns why `strict_value` refuses the text, to follow a field's name in an error; empty if it does not."""
    try:
        strict_value(text)
    except UnfitJson as unfit:
        return str(unfit)
    return ""


def object_problem(text: str) -> str:
    """Returns why the text is not a JSON object that `strict_value` takes; empty if it is one."""
    try:
        return "" if isinstance(strict_value(text), dict) else "is not a JSON object"
    except UnfitJson as unfit:
        return "is not a JSON object" if str(unfit) == NO_JSON else str(unfit)


def exact_value(text: str) -> object:
    """Returns the value of a text that a model wrote: halves of characters are kept, and whole numbers are exact.

    Raises UnfitJson if the text is not JSON, is nested too deep, or has a number that no float can hold.
    """
    check_levels(text)
    has_digits = _MANY_DIGITS.search(text) is not None
    integer = _integer if has_digits else None
    fraction = _finite if has_digits or _LARGE_EXPONENT.search(text) else None
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=integer, parse_float=fraction)
    except UnfitJson:
        raise
    except ValueError as error:
        raise UnfitJson(f"{NO_JSON}: {error}") from None


def _no_constant(token: str) -> object:
    raise UnfitJson(f"{NO_JSON}: {token} is no number")


def _integer(digits: str) -> int:
    _finite(digits)
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise UnfitJson("has a number that is too large")
    return value
