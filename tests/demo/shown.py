"""Formats values and texts for the demo."""

from collections.abc import Iterable


def shown(value: object) -> str:
    """Returns a value of a check as one line."""
    match value:
        case bool():
            return "yes" if value else "no"
        case list() | tuple() if not value:
            return "none"
        case list() | tuple():
            return ", ".join(shown(item) for item in value)
        case bytes():
            return value.decode(errors="backslashreplace")
    return str(value)


def around(text: bytes, where: int) -> str:
    """Returns the text around a byte."""
    return "…" + text[max(where - 24, 0) : where + 24].decode(errors="replace") + "…"


def words(line: str) -> Iterable[str]:
    """Yields the words of a line with their spaces; a line may break between them."""
    start = 0
    while (end := line.find(" ", start)) >= 0:
        yield line[start : end + 1]
        start = end + 1
    if start < len(line):
        yield line[start:]
