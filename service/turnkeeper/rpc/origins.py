"""Who is on record for a call: its caller, its credential, and the id that the caller gave it."""

from turnkeeper.domain.audit import Origin
from turnkeeper.domain.session import Session
from turnkeeper.engine.rules.audit import Operation
from turnkeeper.identity.caller import Caller
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.request_ids import request_id_of


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
    request_id = request_id_of(context)
    if caller is None:
        return Origin(credential_id=credential_id, request_id=request_id)
    return Origin(
        principal=caller.actor,
        credential_id=caller.credential_id,
        on_behalf_of=caller.on_behalf_of or "",
        request_id=request_id,
    )
