"""The verbs on remembered decisions: list those of a session, revoke one."""

from functools import partial

from turnkeeper.domain.approval import Approval
from turnkeeper.domain.audit import Origin
from turnkeeper.domain.remembered import RememberedDecision
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import remembered as rules
from turnkeeper.engine.sessions import Sessions
from turnkeeper.errors import InternalError
from turnkeeper.store.changeset import Head


class RememberedDecisions:
    """The verbs on the decisions that sessions remember."""

    def __init__(self, sessions: Sessions, log_writer: LogWriter) -> None:
        self._sessions = sessions
        self._log_writer = log_writer

    async def session(self, key: SessionKey) -> tuple[Session, Head]:
        """Returns the session and its head. Raises SessionNotFound if there is none."""
        return await self._sessions.get(key)

    async def revoke(self, approval: Approval, *, by: str, origin: Origin) -> tuple[int, int]:
        """Revokes the decision on `approval` if its session remembers it. `by` is the principal.

        Returns the number of its event, 0 if the session does not remember it (any more), and that of the log's end
        before it. Raises SessionNotFound if the session is deleted.
        """
        decide = partial(rules.revoke, approval_id=approval.id, by=by, origin=origin)
        stored = await self._log_writer.append(approval.session_key, decide)
        if not isinstance(stored, Stored):
            raise InternalError
        return stored.value, stored.uow.snapshot.head.last_seq


def active(session: Session, head: Head) -> tuple[RememberedDecision, ...]:
    """Returns the decisions of the session that approve calls now, by the database's clock; newest first."""
    return tuple(decision for decision in session.remembered if decision.expire_time > head.now)
