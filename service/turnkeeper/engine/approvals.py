"""The verbs on approvals: get, wait for, decide and expire. An approval leaves PENDING once (promises I6, I7)."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar

from turnkeeper.domain import votes
from turnkeeper.domain.approval import Answer, Approval, ApprovalKind, ApprovalState
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.tool import ToolSpec
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.eventlog.writer import LogWriter, Stored, behind
from turnkeeper.engine.rules import approval_edits, approval_times
from turnkeeper.engine.rules import approvals as approval_rules
from turnkeeper.engine.rules.approval_edits import Edit
from turnkeeper.engine.rules.approval_times import Extension
from turnkeeper.engine.rules.remembered import check_repeat
from turnkeeper.engine.rules.tool_calls import facts_of
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.errors import (
    AgentConfigError,
    ApprovalAlreadyProcessed,
    ApprovalHasExpired,
    ApprovalNotFound,
    InternalError,
    TurnNotFound,
)
from turnkeeper.event_loop import off_loop
from turnkeeper.faults import fault
from turnkeeper.policy.policies import Policies
from turnkeeper.store.changeset import Snapshot
from turnkeeper.store.contract import ApprovalStore, SessionStore
from turnkeeper.tools.toolbox import Toolbox

T = TypeVar("T")


class ArgumentEdits:
    """Checks the arguments that an approver edits, against the tool and the policy of the turn's agent."""

    def __init__(self, sessions: SessionStore, *, agents: AgentVersions, toolbox: Toolbox, policies: Policies) -> None:
        self._sessions = sessions
        self._policies = policies
        self._agents = agents
        self._toolbox = toolbox

    async def edit_of(self, approval: Approval, answer: Answer) -> Edit | None:
        """Returns the answer's edit, or None if it changes no arguments.

        Raises AgentConfigError if the agent's version is gone, and what `check_edit` raises.
        """
        if not answer.edited_arguments_json or approval.kind is not ApprovalKind.TOOL_CALL:
            return None
        turn = await self._sessions.turn(approval.session_key, approval.turn_id)
        stored = await self._sessions.session(approval.session_key)
        call = await self._sessions.call(approval.session_key, approval.tool_call_id)
        if turn is None or stored is None or call is None:
            raise TurnNotFound(session_id=approval.session_id, turn_id=approval.turn_id)
        agent = await self._agents.pinned_by(turn)
        if agent is None:
            raise AgentConfigError("The agent's pinned version is gone; reject the call, or start a new session.")

        def rule_on(spec: ToolSpec, arguments_json: str) -> Ruling:
            facts = facts_of(turn, stored[0], spec, arguments_json=arguments_json, untrusted=call.untrusted)
            return self._policies.ruling_on(agent, facts)

        arguments_json = answer.edited_arguments_json
        check = partial(approval_edits.check_edit, approval, arguments_json, agent=agent, toolbox=self._toolbox)
        return await off_loop(partial(check, rule_on=rule_on))


class Approvals:
    """The verbs on approvals."""

    def __init__(self, store: ApprovalStore, log_writer: LogWriter, feeds: Feeds, *, edits: ArgumentEdits) -> None:
        self._store = store
        self._log_writer = log_writer
        self._feeds = feeds
        self._edits = edits

    async def get(self, tenant: str, approval_id: str) -> Approval:
        """Returns the approval. Raises ApprovalNotFound if the tenant has none with this id."""
        approval = await self._store.approval(tenant, approval_id)
        if approval is None:
            raise ApprovalNotFound(metadata={"approval_id": approval_id})
        return approval

    async def wait(self, approval: Approval, *, seconds: float) -> Approval:
        """Returns the approval once it is no longer PENDING, or as it is after `seconds`; raises as `get`."""
        tenant, approval_id = approval.tenant, approval.id

        async def closed() -> Approval | None:
            now = await self.get(tenant, approval_id)
            return now if now.state is not ApprovalState.PENDING else None

        return await self._feeds.until(approval.session_key, closed, seconds=seconds) or await self.get(
            tenant, approval_id
        )

    async def decide(self, approval_id: str, answer: Answer, *, tenant: str) -> tuple[Approval, int]:
        """Votes on an approval, and decides it if the votes are enough. Repeating a vote as the same person returns the
        same result, and stores nothing.

        Returns the approval, PENDING if more votes are needed; after an edit it is that of the next round. Returns also
        the number of the event that the vote led to.

        Raises as `get`, as `votes.cast` and, for an edit, as `check_edit`. Raises ApprovalHasExpired if the database's
        clock has passed the approval's `expire_time`, after it has stored the expiry.
        """
        approval = await self.get(tenant, approval_id)
        if approval.state is not ApprovalState.PENDING:
            return await self._repeated(approval, answer)
        edit = await self._edits.edit_of(approval, answer)

        def decide(uow: UnitOfWork) -> Approval | None:
            if edit is not None:
                return approval_rules.decide_with_edit(uow, approval_id, answer, edit)
            return approval_rules.decide(uow, approval_id, answer)

        fault("approval.before_store")
        stored = await self._append(approval, decide)
        fault("approval.after_store")
        decided = stored.value
        if decided is None:
            approval = await self.get(tenant, approval_id)
            if approval.state is ApprovalState.PENDING:  # the decision read more than this reading shows
                raise behind(approval.session_key)
            return await self._repeated(approval, answer)
        if stored.committed is not None and decided.state is not ApprovalState.PENDING:
            self._log_writer.notify_owner(decided.session_key)
        if decided.state is ApprovalState.EXPIRED:
            raise _expired(decided)
        return decided, votes.sequence_of(decided, answer.by)

    async def expire(
        self, approval: Approval, snapshot: Snapshot | None = None, *, wake: timedelta = timedelta()
    ) -> None:
        """Expires the lapsed approvals of this one's turn, EXPIRED_AT_ONCE in a changeset.

        Does nothing if they have left PENDING in the meantime. Decides on `snapshot` of the turn first, if it is given.
        If the turn goes on, it is due after `wake`.
        """
        decide = partial(approval_rules.expire_lapsed, wake=wake)
        while True:
            stored = await self._append(approval, decide, snapshot)
            snapshot = None
            if stored.committed is None:
                return
            self._log_writer.notify_owner(approval.session_key)
            if len(stored.value) < approval_rules.EXPIRED_AT_ONCE:
                return

    async def extend(self, approval_id: str, extension: Extension, *, tenant: str) -> Approval:
        """Gives more time to decide an approval. Repeating it returns the same result, and stores nothing.

        Raises as `get`, InvalidRequest for a time that the approval cannot have, PermissionDenied if the person may not
        decide it, ApprovalAlreadyProcessed if it is no longer PENDING. Raises ApprovalHasExpired if its time is over,
        after it has stored the expiry.
        """
        approval = await self.get(tenant, approval_id)
        _check_pending(approval)
        stored = await self._append(approval, lambda uow: approval_times.extend(uow, approval_id, extension))
        if stored.value is None:
            approval = await self.get(tenant, approval_id)
            _check_pending(approval)
            raise behind(approval.session_key)  # the decision read more than this reading shows
        if stored.value.state is ApprovalState.EXPIRED:
            self._log_writer.notify_owner(stored.value.session_key)
            raise _expired(stored.value)
        return stored.value

    async def announce_expiring(self, approval: Approval, snapshot: Snapshot | None = None) -> None:
        """Stores `approval_expiring` for this one's turn, on `snapshot` of the turn first if it is given."""
        await self._append(approval, approval_times.announce_expiring, snapshot)

    async def _append(
        self, approval: Approval, decide: Callable[[UnitOfWork], T], snapshot: Snapshot | None = None
    ) -> Stored[T]:
        """Stores a decision on the approval's turn, made on `snapshot` first. Raises as `LogWriter.append`."""
        stored = (
            await self._log_writer.append(approval.session_key, decide, turn_id=approval.turn_id)
            if snapshot is None
            else await self._log_writer.append_on(snapshot, decide, turn_id=approval.turn_id)
        )
        if not isinstance(stored, Stored):
            raise InternalError
        return stored

    async def _repeated(self, approval: Approval, answer: Answer) -> tuple[Approval, int]:
        """Returns the approval that this answer voted on before, and the number of its event.

        Raises ApprovalHasExpired if the approval has expired, ApprovalAlreadyProcessed if it was decided otherwise.
        """
        if approval.state is ApprovalState.EXPIRED:
            raise _expired(approval)
        if answer.edited_arguments_json and approval.replaced_by:
            replacement = await self.get(approval.tenant, approval.replaced_by)
            if approval_edits.is_repeat(answer, approval, replacement):
                return replacement, votes.sequence_of(replacement, answer.by)
        approval_edits.check_unedited(answer, approval)
        decided = votes.repeated(approval, answer)
        check_repeat(decided, answer)
        return decided, votes.sequence_of(decided, answer.by)


def _check_pending(approval: Approval) -> None:
    """Raises ApprovalHasExpired or ApprovalAlreadyProcessed unless the approval is PENDING."""
    if approval.state is ApprovalState.EXPIRED:
        raise _expired(approval)
    if approval.state is not ApprovalState.PENDING:
        raise ApprovalAlreadyProcessed(
            session_id=approval.session_id, turn_id=approval.turn_id, metadata=approval.outcome
        )


def _expired(approval: Approval) -> ApprovalHasExpired:
    return ApprovalHasExpired(
        session_id=approval.session_id, turn_id=approval.turn_id, metadata={"approval_id": approval.id}
    )
