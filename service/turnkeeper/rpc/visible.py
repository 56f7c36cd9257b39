"""What a caller may see. What it may not see looks to it as if it did not exist: the error is the same."""

from contextlib import suppress
from functools import partial

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.engine.approvals import Approvals
from turnkeeper.engine.sessions import Sessions
from turnkeeper.errors import ApprovalNotFound, ServiceUnavailable, SessionNotFound
from turnkeeper.identity.caller import AccessRole, Caller
from turnkeeper.rpc.identity import check_also
from turnkeeper.store.changeset import Head
from turnkeeper.store.contract import ApprovalStore
from turnkeeper.store.filters import ApprovalFilter


class VisibleSessions:
    """Gets sessions for callers, whose roles are those that the called method admits."""

    def __init__(self, sessions: Sessions, approvals: ApprovalStore) -> None:
        self._sessions = sessions
        self._approvals = approvals

    async def get(self, caller: Caller, session_id: str, *, deleted: bool = False) -> tuple[Session, Head]:
        """Returns a session and its head. Raises SessionNotFound if there is none that the caller may see.

        That holds for a deleted one, too, unless `deleted`.
        """
        key = caller.session_key(session_id)
        session, head = await self._sessions.get(key, deleted=deleted)
        if not caller.sees(session.owner) and not await self._is_approver_of(caller, key):
            raise SessionNotFound(session_id=session_id)
        return session, head

    def check_again(self, caller: Caller, session: Session) -> None:
        """Ends the current call, at a later check, once its caller no longer sees the session as an approver."""
        if not caller.sees(session.owner):
            check_also(partial(self._check, caller, session.id))

    async def _check(self, caller: Caller, session_id: str) -> None:
        """Raises SessionNotFound if the session is certainly no longer the caller's to see: its approvals are closed.

        While the database is away, it is.
        """
        with suppress(ServiceUnavailable):
            try:
                await self.get(caller, session_id)
            except SessionNotFound:
                async with self._approvals.linearizable():
                    await self.get(caller, session_id)

    async def _is_approver_of(self, caller: Caller, key: SessionKey) -> bool:
        """Returns True if the caller may decide an open approval of the session, or has voted on one."""
        if AccessRole.APPROVER not in caller.roles:
            return False
        for condition in (
            ApprovalFilter(session_id=key.session_id, states=(ApprovalState.PENDING,)),
            ApprovalFilter(session_id=key.session_id, voter=caller.principal),
        ):
            if await self._approvals.approvals(key.tenant, condition, limit=1, after=None):
                return True
        return False


class VisibleApprovals:
    """Gets approvals for callers, whose roles are those that the called method admits."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals

    async def get(self, caller: Caller, approval_id: str) -> Approval:
        """Returns an approval. Raises ApprovalNotFound if there is none that the caller may see."""
        approval = await self._approvals.get(caller.tenant, approval_id)
        if not sees_all_approvals(caller) and not caller.owns(approval.requester):
            raise ApprovalNotFound(metadata={"approval_id": approval_id})
        return approval


def sees_all_approvals(caller: Caller) -> bool:
    """Returns True if the caller may see all approvals of its tenant; otherwise it sees those of its own sessions."""
    return caller.sees_tenant or AccessRole.APPROVER in caller.roles
