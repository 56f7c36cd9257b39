"""Reads the content of a model's message: a text, or a list of parts."""

from turnkeeper.model.dialect import IGNORED_PARTS, REASONING_PARTS
from turnkeeper.model.failure import Reason, failure


def content_of(value: object) -> tuple[str, bool, bool]:
    """Returns the text of a content, and whether it has reasoning and a refusal. It may be a list of parts."""
    if isinstance(value, str):
        return value, False, False
    if not value:
        return "", False, False
    parts = [_text_of_part(part) for part in (value if isinstance(value, list) else [value])]
    return "".join(text for text, *_ in parts), any(part[1] for part in parts), any(part[2] for part in parts)


def _text_of_part(part: object) -> tuple[str, bool, bool]:
    """Returns the text of one part, and whether it is reasoning, or a refusal."""
    if isinstance(part, str):
        return part, False, False
    if not isinstance(part, dict):
        raise failure(Reason.MALFORMED)
    kind, text = part.get("type"), part.get("text")
    if kind in REASONING_PARTS:
        return "", True, False
    if part.get("refusal"):
        return "", False, True
    if text is None and kind not in IGNORED_PARTS:
        raise failure(Reason.UNREAD_ANSWER)
    return text_of(text.get("value") if isinstance(text, dict) else text), False, False


def text_of(value: object) -> str:
    """Returns a text, "" for null. Raises ModelFailure for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise failure(Reason.MALFORMED)
    return value
