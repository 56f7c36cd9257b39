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


class RememberedDecisions:
    """The verbs on the decisions that sessions remember."""

    def __init__(self, sessions: Sessions, log_writer: LogWriter) -> None:
        self._sessions = sessions
        self._log_writer = log_writer

    async def active(self, key: SessionKey) -> tuple[Session, tuple[RememberedDecision, ...]]:
        """Returns the session, and its decisions that approve calls now, by the database's clock; newest first.

        Raises SessionNotFound if there is none.
        """
        session, head = await self._sessions.get(key)
        return session, tuple(decision for decision in session.remembered if decision.expire_time > head.now)

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
