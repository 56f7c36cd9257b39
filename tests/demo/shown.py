"""How the demo prints values and text."""

from collections.abc import Iterable


def shown(value: object) -> str:
    """A value of a check, in a line."""
    match value:
        case bool():
            return "yes" if value else "no"
        case list() | tuple() if not value:
            return "none"
        case list() | tuple():
            return ", ".join(shown(each) for each in value)
        case bytes():
            return value.decode(errors="backslashreplace")
    return str(value)


def around(text: bytes, where: int) -> str:
    """The text near a byte."""
    return "…" + text[max(where - 24, 0) : where + 24].decode(errors="replace") + "…"


def words(line: str) -> Iterable[str]:
    """Pieces that a line may be broken between; joined they are the line."""
    start = 0
    while (end := line.find(" ", start)) >= 0:
        yield line[start : end + 1]
        start = end + 1
    if start < len(line):
        yield line[start:]
