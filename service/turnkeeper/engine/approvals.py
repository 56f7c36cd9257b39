"""Decide and expire. An approval leaves PENDING once, by one conditional write (promises I6, I7)."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import assert_never

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.event import ApprovalDecided, ApprovalExpired
from turnkeeper.domain.tool import Call, CallState, ToolOutcome, ToolResult
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.draft import Draft
from turnkeeper.engine.edits import Edit, check_edit, check_unedited, is_repeat, open_round
from turnkeeper.engine.feed import Feeds, Key
from turnkeeper.engine.journal import Journal, Stored
from turnkeeper.engine.toolbox import Toolbox
from turnkeeper.errors import AgentConfigError, ApprovalNotFound, InternalError
from turnkeeper.errors import ApprovalExpired as ApprovalHasExpired
from turnkeeper.faults import fault
from turnkeeper.store.contract import Store
from turnkeeper.telemetry.metrics import Metrics


class Approvals:
    """The verbs of ApprovalService."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        store: Store,
        journal: Journal,
        feeds: Feeds,
        *,
        metrics: Metrics,
        toolbox: Toolbox,
        agent_of: Callable[[str, Turn], Awaitable[Agent | None]],
        woken: Callable[[Key], None],
    ) -> None:
        """`agent_of` gives the agent that a tenant's turn runs; `woken` is told the session whose turn may go on."""
        self._toolbox = toolbox
        self._agent_of = agent_of
        self._store = store
        self._journal = journal
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

        found = await self._feeds.until((tenant, approval.session_id), look, seconds=seconds)
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

        def decide(draft: Draft) -> Approval:
            if edit is not None:
                return edit_in(draft, approval_id, said, edit) or asked
            decided = decide_in(
                draft,
                approval_id,
                said.decision,
                by=said.by,
                arguments_hash=said.arguments_hash,
                reason=said.reason,
                result_json=said.result_json,
            )
            return decided or asked

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

        stored = await self._append(approval, lambda draft: expire_in(draft, approval.id) or approval)
        if stored.committed is not None:
            self._finished(stored.value)

    async def _append(self, about: Approval, decide: Callable[[Draft], Approval]) -> Stored[Approval]:
        stored = await self._journal.append(about.tenant, about.session_id, decide, turn_id=about.turn_id)
        if not isinstance(stored, Stored):
            raise InternalError
        return stored

    async def _edit(self, asked: Approval, said: Answer) -> Edit | None:
        if not said.edited_arguments_json or asked.kind is not ApprovalKind.TOOL_CALL:
            return None
        turn = await self._store.turn(asked.tenant, asked.session_id, asked.turn_id)
        agent = await self._agent_of(asked.tenant, turn) if turn is not None else None
        if agent is None:
            raise AgentConfigError("The agent's pinned version is gone; reject the call, or start a new session.")
        return check_edit(asked, said.edited_arguments_json, agent=agent, toolbox=self._toolbox)

    async def _repeated(self, approval: Approval, said: Answer) -> tuple[Approval, int]:
        if approval.state is ApprovalState.EXPIRED:
            raise _expired(approval)
        if said.edited_arguments_json and approval.replaced_by:
            replacement = await self.get(approval.tenant, approval.replaced_by)
            if is_repeat(said, approval, replacement):
                return replacement, replacement.sequence
        check_unedited(said, approval)
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
        self._woken((approval.tenant, approval.session_id))


def decide_in(  # noqa: PLR0913 - what a decision says
    draft: Draft,
    approval_id: str,
    decision: ApprovalDecision,
    *,
    by: str,
    arguments_hash: str,
    reason: str,
    result_json: str = "",
) -> Approval | None:
    """The decided approval, or the expired one when its time is over; None when it is not PENDING any more."""
    approval = _pending(draft, approval_id)
    if approval is None:
        return None
    if approval.expire_time <= draft.snapshot.head.now:
        return _expire(draft, approval)
    decided = approval.decide(
        decision, by=by, arguments_hash=arguments_hash, reason=reason, at=draft.at, result_json=result_json
    )
    decided = replace(decided, sequence=draft.next_sequence)
    _store_decision(draft, decided, decision, reason=reason)
    return decided


def edit_in(draft: Draft, approval_id: str, said: Answer, edit: Edit) -> Approval | None:
    """The next round's approval, decided by the edit's author; else as `decide_in`."""
    approval = _pending(draft, approval_id)
    if approval is None:
        return None
    if approval.expire_time <= draft.snapshot.head.now:
        return _expire(draft, approval)
    plain = {"by": said.by, "reason": said.reason}
    approval.decide(said.decision, arguments_hash=said.arguments_hash, at=draft.at, **plain)
    asked = open_round(draft, approval, edit)
    return decide_in(draft, asked.id, said.decision, arguments_hash=asked.arguments_hash, **plain)


def expire_in(draft: Draft, approval_id: str) -> Approval | None:
    """The expired approval; None when it is not PENDING any more, or its time is not over."""
    approval = _pending(draft, approval_id)
    if approval is None or approval.expire_time > draft.snapshot.head.now:
        return None
    return _expire(draft, approval)


def _expire(draft: Draft, approval: Approval) -> Approval:
    """Expiry writes the synthetic result, and re-queues when it was the last, in one step."""
    expired = replace(approval.closed(ApprovalState.EXPIRED, at=draft.at), sequence=draft.next_sequence)
    draft.close_approval(expired, lapsed=True)
    draft.say(ApprovalExpired(approval_id=approval.id, tool_call_id=approval.tool_call_id), turn=draft.turn)
    if approval.kind is ApprovalKind.OUTCOME:
        _give_up(draft, approval)
    else:
        draft.close_call_as(_call_of(draft, approval), ToolOutcome.EXPIRED)
    draft.answered()
    return expired


def _pending(draft: Draft, approval_id: str) -> Approval | None:
    return next((approval for approval in draft.approvals if approval.id == approval_id), None)


def _call_of(draft: Draft, approval: Approval) -> Call:
    return next(call for call in draft.calls if call.id == approval.tool_call_id)


def _store_decision(draft: Draft, decided: Approval, decision: ApprovalDecision, *, reason: str) -> None:
    draft.close_approval(decided, lapsed=False)
    draft.say(
        ApprovalDecided(
            approval_id=decided.id,
            tool_call_id=decided.tool_call_id,
            decision=decision,
            decided_by=decided.decided_by,
            reason=reason,
            arguments_hash=decided.arguments_hash,
            round=decided.round,
        ),
        turn=draft.turn,
    )
    call = _call_of(draft, decided)
    match decision:
        case ApprovalDecision.APPROVE:
            draft.put_call(replace(call, state=CallState.READY))
        case ApprovalDecision.REJECT:
            draft.close_call_as(call, ToolOutcome.REJECTED, reason=reason)
        case ApprovalDecision.RETRY:
            draft.session = draft.session.without_unknown(call.id)
            draft.put_call(replace(call, state=CallState.READY, unsettled=False))
        case ApprovalDecision.MARK_DONE:
            draft.session = draft.session.without_unknown(call.id)
            done = ToolResult(outcome=ToolOutcome.OK, result_json=decided.result_json)
            draft.close_call(replace(call, unsettled=False), done)
        case ApprovalDecision.GIVE_UP:
            _give_up(draft, decided, reason=reason)
        case _:
            assert_never(decision)
    draft.answered()


def _give_up(draft: Draft, approval: Approval, *, reason: str = "") -> None:
    """It stays unknown, the session goes on remembering it, and the model is told."""
    call = replace(_call_of(draft, approval), unsettled=False)
    draft.close_call_as(call, ToolOutcome.UNKNOWN, reason=reason)


def _expired(approval: Approval) -> ApprovalHasExpired:
    return ApprovalHasExpired(
        session_id=approval.session_id, turn_id=approval.turn_id, metadata={"approval_id": approval.id}
    )
