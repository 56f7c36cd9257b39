"""Who is on record for a call: its caller, its credential, and the id that the caller gave it."""

import re
from collections.abc import Iterable
from typing import Final

from turnkeeper.domain.audit import Origin
from turnkeeper.domain.session import Session
from turnkeeper.engine.rules.audit import Operation
from turnkeeper.identity.caller import Caller
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import caller_of

REQUEST_ID: Final = "x-request-id"
"""The metadata by which callers and proxies name a call."""
_FIT: Final = re.compile(r"[!-~]{1,128}")


def origin_of(context: Context) -> Origin:
    """Returns who is on record for the call that `context` belongs to."""
    return origin(caller_of(context), context)


def operation_on(session: Session, context: Context, action: str) -> Operation | None:
    """Returns what goes on record of a call that changes this session; None for the owner's own calls.

    `action` is the RPC, such as `end_session`.
    """
    if caller_of(context).owns(session.owner):
        return None
    return Operation(action=action, origin=origin_of(context))


def origin(caller: Caller | None, context: Context, *, credential_id: str = "") -> Origin:
    """Returns who is on record for a call of this caller; of a credential alone if its caller is not known."""
    request_id = _request_id(context.invocation_metadata() or ())
    if caller is None:
        return Origin(credential_id=credential_id, request_id=request_id)
    return Origin(
        principal=caller.actor,
        credential_id=caller.credential_id,
        on_behalf_of=caller.on_behalf_of or "",
        request_id=request_id,
    )


def _request_id(metadata: Iterable[tuple[str, object]]) -> str:
    """Returns the first id that the metadata has; empty if that is longer than 128 characters, or not visible ASCII."""
    given = next((value for key, value in metadata if key == REQUEST_ID), "")
    return given if isinstance(given, str) and _FIT.fullmatch(given) else ""
