"""Finds the class of a code, so that a stored error becomes an exception again."""

import turnkeeper.operator_errors  # noqa: F401 - their classes are among the subclasses
from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.errors import Aborted, SessionError


def leaves(family: type[SessionError] = SessionError) -> dict[Code, type[SessionError]]:
    """Returns the class of each code. A family's default code belongs to its leaf."""
    children = family.__subclasses__()
    return {code: leaf for child in children for code, leaf in leaves(child).items()} or {family.code: family}


def error_of(detail: ErrorDetail, *, session_id: str = "", turn_id: str = "") -> SessionError:
    """Returns the exception of a stored error, of the class of its code; Aborted for a code of a newer version."""
    leaf, after = leaves().get(detail.code, Aborted), detail.retry_after
    error = leaf(detail.message, metadata=detail.metadata, session_id=session_id, turn_id=turn_id, retry_after=after)
    error.code = detail.code
    return error
