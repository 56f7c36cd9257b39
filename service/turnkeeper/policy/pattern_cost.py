"""What compiling a pattern costs, counted from its text alone: the same on each machine, however busy it is."""

import re
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"\[(?P<brackets>\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*)\]"
    r"|\\(?P<property>[pP](?:\{[^}]*\}|.))"
    r"|\\(?P<escape>.)"
    r"|\{(?P<least>\d+)(?P<open>,?)(?P<most>\d*)\}"
    r"|\(\?(?P<flags>[a-zA-Z-]+)(?P<end>[:)])"
    r"|(?P<sign>\(\?P?<\w+>|\(|\)|[*+?|^$])"
    r"|(?P<literal>.)",
    re.DOTALL,
)


class _PatternPart(NamedTuple):
    """Steps of a part of a pattern; a step is about 0.5 µs."""

    once: int
    repeated: int
    """Again for each time that it is repeated."""


_CLASSES: Final = {
    "w": _PatternPart(0, 840),
    "W": _PatternPart(0, 840),
    "d": _PatternPart(100, 65),
    "D": _PatternPart(30, 140),
    "s": _PatternPart(100, 15),
    "S": _PatternPart(100, 25),
}
_PROPERTY: Final = 850
_PROPERTY_OF_ANY_CASE: Final = 1_300
_LETTER: Final = _PatternPart(0, 1)
_LETTER_OF_ANY_CASE: Final = _PatternPart(40, 25)
_ANY: Final = _PatternPart(110, 12)
_BRACKETS: Final = _PatternPart(20, 6)
_NEGATED: Final = _PatternPart(100, 15)
_BASE: Final = 20


def steps_of(pattern: str) -> int:
    """Returns about how many steps compiling a pattern takes; it can be twice as many, or fewer.

    A part that is repeated by a count is compiled as often as that.
    """
    any_case = re.search(r"\(\?[a-zA-Z]*i", pattern) is not None
    total, groups, last = _BASE, [0], 0
    for token in _TOKEN.finditer(pattern):
        sign = token["sign"] or ("(" if token["end"] == ":" else "")
        if token["least"] is not None:
            times = max(int(token["most"] or 0), int(token["least"]) + bool(token["open"]), 1)
            groups[-1] += last * (times - 1)
            last *= times
        elif sign.startswith("("):
            groups.append(0)
        elif sign == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif not sign and token["flags"] is None:
            part = _part(token, any_case=any_case)
            total, last = total + part.once, part.repeated
            groups[-1] += last
    return total + sum(groups)


def _part(token: re.Match[str], *, any_case: bool) -> _PatternPart:
    letter = _LETTER_OF_ANY_CASE if any_case else _LETTER
    of_property = _PROPERTY_OF_ANY_CASE if any_case else _PROPERTY
    inside = token["brackets"]
    if inside is not None:
        held = [_CLASSES[name] for name in re.findall(r"\\([wWdDsS])", inside)]
        held += [_PatternPart(0, of_property)] * (inside.count("\\p") + inside.count("\\P"))
        held.append(_NEGATED if inside.startswith("^") else _BRACKETS)
        return _PatternPart(sum(part.once for part in held) + len(inside), sum(part.repeated for part in held))
    if token["property"] is not None:
        return _PatternPart(0, of_property)
    if token["escape"] is not None:
        return _CLASSES.get(token["escape"], letter)
    return _ANY if token["literal"] == "." else letter
