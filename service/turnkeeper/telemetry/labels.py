"""A label's value is an enum's or a configured name. What looks like an id becomes `_OTHER`."""

import re
from functools import lru_cache

OTHER = "_OTHER"
SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The gRPC statuses that the conventions call a server's error; the others are the caller's."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,79}")
_ID = re.compile(
    r"(?<![A-Za-z0-9])[0-7][0-9a-hjkmnp-tv-z]{25}(?![A-Za-z0-9])"  # a ULID
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # a UUID
    r"|(?<![A-Za-z0-9])[0-9a-f]{16,}(?![A-Za-z0-9])",  # a hash, a trace id, an ObjectId, a number
    re.IGNORECASE,
)


@lru_cache(maxsize=1024)
def label(value: str) -> str:
    """`value` as a label, or `_OTHER` for an id, a sentence or an empty text. Cheap for values seen before."""
    if not _NAME.fullmatch(value) or _ID.search(value):
        return OTHER
    return str(value)
