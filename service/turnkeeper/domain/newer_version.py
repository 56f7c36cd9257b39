"""What a newer version stored, as this one meets it during a rolling change.

UNSPECIFIED is how this version reads an enum's value that it does not know. It does not belong to the enum's members,
so that a request or a configuration cannot name it. It is never stored.
"""

from datetime import timedelta
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar, cast

from turnkeeper.errors import ServiceUnavailable

UNSPECIFIED: Final = "UNSPECIFIED"
RETRY_AFTER: Final = timedelta(seconds=1)
"""How long a caller waits before it tries again, to reach another replica."""
E = TypeVar("E", bound=Enum)


@cache
def unspecified(kind: type[E]) -> E:
    """Returns the UNSPECIFIED of this enum of texts or numbers: the same object each time, and equal to no member."""
    enum = cast(Any, kind)
    content: Any = 0 if issubclass(enum, int) else UNSPECIFIED
    value = enum._member_type_.__new__(enum, content)  # as `enum.Flag` makes its own
    value._name_, value._value_ = UNSPECIFIED, content
    return cast(E, value)


def is_unspecified(value: object) -> bool:
    """Returns True for the UNSPECIFIED of any enum."""
    return isinstance(value, Enum) and value.name == UNSPECIFIED


def newer_version_needed(*, session_id: str = "") -> ServiceUnavailable:
    """Returns the error of a call that this version cannot serve, because of what is stored."""
    error = ServiceUnavailable(
        "Only a newer version of this server understands what is stored here; send the same call again, to reach one.",
        session_id=session_id,
        retry_after=RETRY_AFTER,
    )
    error.needs_newer_version = True
    return error
