"""Decide and expire. An approval leaves PENDING once, by one conditional write (promises I6, I7)."""

from collections.abc import Awaitable, Callable

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Answer, Approval, ApprovalKind, ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import approval_edits
from turnkeeper.engine.rules import approvals as approval_rules
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.errors import AgentConfigError, ApprovalNotFound, InternalError
from turnkeeper.errors import ApprovalExpired as ApprovalHasExpired
from turnkeeper.faults import fault
from turnkeeper.store.contract import ApprovalStore, SessionStore
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.tools.toolbox import Toolbox


class Approvals:
    """The verbs of ApprovalService."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        store: ApprovalStore,
        sessions: SessionStore,
        log_writer: LogWriter,
        feeds: Feeds,
        *,
        metrics: Metrics,
        toolbox: Toolbox,
        agent_of: Callable[[str, Turn], Awaitable[Agent | None]],
        woken: Callable[[SessionKey], None],
    ) -> None:
        """`agent_of` gives the agent that a tenant's turn runs; `woken` is told the session whose turn may go on."""
        self._toolbox = toolbox
        self._agent_of = agent_of
        self._store = store
        self._sessions = sessions
        self._log_writer = log_writer
        self._feeds = feeds
        self._metrics = metrics
        self._woken = woken

    async def get(self, tenant: str, approval_id: str) -> Approval:
        approval = await self._store.approval(tenant, approval_id)
        if approval is None:
            raise ApprovalNotFound(metadata={"approval_id": approval_id})
        return approval

    async def wait(self, tenant: str, approval_id: str, *, seconds: float) -> Approval:
        """Once it is no longer PENDING, or as it is when the time is over."""
        approval = await self.get(tenant, approval_id)

        async def look() -> Approval | None:
            now = await self.get(tenant, approval_id)
            return now if now.state is not ApprovalState.PENDING else None

        found = await self._feeds.until(approval.session_key, look, seconds=seconds)
        return found or await self.get(tenant, approval_id)

    async def decide(self, approval_id: str, said: Answer, *, tenant: str) -> tuple[Approval, int]:
        """The decided approval and the number of its event. After an edit it is that of the next round.

        Raises ApprovalNotFound, ApprovalAlreadyProcessed, ArgumentsHashMismatch, InvalidRequest for a decision that
        its kind does not take; for an edit ToolNotFound, ToolValidationError, ToolPermissionDenied; ApprovalExpired
        when its time is over by the database's clock: then the expiry is stored first.
        """
        asked = await self.get(tenant, approval_id)
        if asked.state is not ApprovalState.PENDING:
            return await self._repeated(asked, said)
        edit = await self._edit(asked, said)

        def decide(uow: UnitOfWork) -> Approval:
            if edit is not None:
                return approval_rules.decide_with_edit(uow, approval_id, said, edit) or asked
            return approval_rules.decide(uow, approval_id, said) or asked

        fault("approval.before_store")
        stored = await self._append(asked, decide)
        fault("approval.after_store")
        if stored.committed is None:
            return await self._repeated(await self.get(tenant, approval_id), said)
        self._finished(stored.value)
        if stored.value.state is ApprovalState.EXPIRED:
            raise _expired(stored.value)
        return stored.value, stored.value.sequence

    async def expire(self, approval: Approval) -> None:
        """End a lapsed approval; nothing happens when somebody was faster."""

        stored = await self._append(approval, lambda uow: approval_rules.expire(uow, approval.id) or approval)
        if stored.committed is not None:
            self._finished(stored.value)

    async def _append(self, about: Approval, decide: Callable[[UnitOfWork], Approval]) -> Stored[Approval]:
        stored = await self._log_writer.append(about.session_key, decide, turn_id=about.turn_id)
        if not isinstance(stored, Stored):
            raise InternalError
        return stored

    async def _edit(self, asked: Approval, said: Answer) -> approval_edits.Edit | None:
        if not said.edited_arguments_json or asked.kind is not ApprovalKind.TOOL_CALL:
            return None
        turn = await self._sessions.turn(asked.session_key, asked.turn_id)
        agent = await self._agent_of(asked.tenant, turn) if turn is not None else None
        if agent is None:
            raise AgentConfigError("The agent's pinned version is gone; reject the call, or start a new session.")
        return approval_edits.check_edit(asked, said.edited_arguments_json, agent=agent, toolbox=self._toolbox)

    async def _repeated(self, approval: Approval, said: Answer) -> tuple[Approval, int]:
        if approval.state is ApprovalState.EXPIRED:
            raise _expired(approval)
        if said.edited_arguments_json and approval.replaced_by:
            replacement = await self.get(approval.tenant, approval.replaced_by)
            if approval_edits.is_repeat(said, approval, replacement):
                return replacement, replacement.sequence
        approval_edits.check_unedited(said, approval)
        same = approval.decide(
            said.decision,
            by=said.by,
            arguments_hash=said.arguments_hash,
            reason=said.reason,
            at=approval.create_time,
            result_json=said.result_json,
        )
        return same, same.sequence

    def _finished(self, approval: Approval) -> None:
        self._metrics.approval(approval.state.value)
        if approval.decide_time is not None:
            waited = (approval.decide_time - approval.create_time).total_seconds()
            self._metrics.decision_time(max(0.0, waited))
        self._woken(approval.session_key)


def _expired(approval: Approval) -> ApprovalHasExpired:
    return ApprovalHasExpired(
        session_id=approval.session_id, turn_id=approval.turn_id, metadata={"approval_id": approval.id}
    )
