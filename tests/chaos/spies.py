"""Spies of one tenant ask for what is the other's, all the time, with ids that were the other's a moment ago.

Each spy has every role in its own tenant. It collects ids of its tenant for the other tenant's spy, as a caller would
have them who found them in a log.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from tests.chaos.calls import UNARY, Answer, Caller
from tests.chaos.streams import read
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

ABSENT: Final = "absent"
"""What the call names is the other tenant's: the answer is NOT_FOUND."""
REFUSED: Final = "refused"
"""What the call names is the caller's own, the position in it the other tenant's: NOT_FOUND or INVALID_ARGUMENT."""
EMPTY: Final = "empty"
"""A list of what is the other tenant's: it has nothing."""
_PROBE_EVERY: Final = 0.6
_COLLECT_EVERY: Final = 4.0
_STREAM: Final = 2.0
"""Seconds."""
_KEPT: Final = 60
_PAGES: Final = (4, 50)
"""Sizes of pages: of one that has a page after it, and of a long one."""
_CHOSEN_BY_CALLERS: Final = ("s-", "hot-", "flood-")
"""How the ids begin that both tenants use."""


@dataclass(slots=True)
class Loot:
    """Ids of one tenant, the latest ones."""

    sessions: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """Those whose id the server has chosen: the other tenant has none of the same id."""
    turns: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """With their sessions."""
    approvals: deque[approval_pb2.Approval] = field(default_factory=lambda: deque(maxlen=_KEPT))
    cursors: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """With their sessions."""
    page_tokens: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """With the sizes of their pages."""


Probe = tuple[str, Any, str]
"""An RPC, its request, and the expected answer."""


class Spy:
    """Asks for what is in `theirs`, and adds to `mine`."""

    def __init__(self, caller: Caller, *, mine: Loot, theirs: Loot) -> None:
        self._caller = caller
        self._rng = caller.rng
        self._mine = mine
        self._theirs = theirs

    async def work(self, done: asyncio.Event) -> None:
        """Collects and asks until done."""
        async with asyncio.TaskGroup() as group:
            for step, seconds in ((self._collect, _COLLECT_EVERY), (self._probe, _PROBE_EVERY)):
                group.create_task(self._repeat(step, seconds, done))

    async def _repeat(self, step: Callable[[], Any], seconds: float, done: asyncio.Event) -> None:
        while not done.is_set():
            await step()
            await asyncio.sleep(seconds * (0.5 + self._rng.random()))

    async def _collect(self) -> None:
        """Lists what its own tenant has."""
        size = self._rng.choice(_PAGES)
        listed = await self._once("ListSessions", session_pb2.ListSessionsRequest(page_size=size))
        if not listed.ok or not listed.response.sessions:
            return
        if token := listed.response.next_page_token:
            self._mine.page_tokens.append((size, token))
        ids = [session.session_id for session in listed.response.sessions]
        self._mine.sessions.extend(id_ for id_ in ids if not id_.startswith(_CHOSEN_BY_CALLERS))
        session_id = self._rng.choice(ids)
        turns = await self._once("ListTurns", chat_pb2.ListTurnsRequest(session_id=session_id))
        if turns.ok:
            self._mine.turns.extend((session_id, turn.turn_id) for turn in turns.response.turns)
        approvals = await self._once("ListApprovals", approval_pb2.ListApprovalsRequest(states=_OPEN))
        if approvals.ok:
            self._mine.approvals.extend(approvals.response.approvals)
        await self._watch(session_pb2.WatchEventsRequest(session_id=session_id))

    async def _probe(self) -> None:
        """Makes one probe, at any replica."""
        probe = self._rng.choice(list(_PROBES.values()))(self._theirs, self._rng)
        if probe is None:
            return
        rpc, request, expected = probe
        if rpc == "WatchEvents":
            await self._watch(request, foreign=expected)
        else:
            await self._once(rpc, request, foreign=expected)

    async def _once(self, rpc: str, request: Any, **more: Any) -> Answer:
        return await self._caller.try_once(rpc, request, self._caller.any_replica(), timeout=UNARY, **more)

    async def _watch(self, request: session_pb2.WatchEventsRequest, **more: Any) -> None:
        """Opens a stream for its first response."""
        replica, given = self._caller.any_replica(), list[Any]()
        number = self._caller.sent("WatchEvents", request, replica, **more)
        errors = list[Answer]()
        call = self._caller.replicas.method(replica, "WatchEvents")(request, timeout=_STREAM + 1)
        how = await read(call, given.append, seconds=_STREAM, errors=errors)
        answer = errors[0] if errors else Answer("OK" if given else how, response=given[-1] if given else None)
        self._caller.answered(number, answer)
        if given and not more:
            self._mine.cursors.append((request.session_id, given[-1].cursor))


_OPEN: Final = [approval_pb2.APPROVAL_STATE_PENDING, approval_pb2.APPROVAL_STATE_APPROVED]


def _of_session(request: Callable[..., Any], rpc: str, expected: str = ABSENT, **more: Any) -> "_NewProbe":
    def probe(theirs: Loot, rng: random.Random) -> Probe | None:
        if not theirs.sessions:
            return None
        return rpc, request(session_id=rng.choice(theirs.sessions), **more), expected

    return probe


def _of_turn(request: Callable[..., Any], rpc: str) -> "_NewProbe":
    def probe(theirs: Loot, rng: random.Random) -> Probe | None:
        if not theirs.turns:
            return None
        session_id, turn_id = rng.choice(theirs.turns)
        return rpc, request(session_id=session_id, turn_id=turn_id), ABSENT

    return probe


def _of_approval(request: Callable[..., Any], rpc: str, **more: Any) -> "_NewProbe":
    def probe(theirs: Loot, rng: random.Random) -> Probe | None:
        if not theirs.approvals:
            return None
        return rpc, request(approval_id=rng.choice(theirs.approvals).approval_id, **more), ABSENT

    return probe


def _decision(theirs: Loot, rng: random.Random) -> Probe | None:
    """Decides with the arguments that the other tenant's approvers see."""
    if not theirs.approvals:
        return None
    approval = rng.choice(theirs.approvals)
    request = approval_pb2.DecideApprovalRequest(
        approval_id=approval.approval_id,
        arguments_hash=approval.arguments_hash,
        decision=event_pb2.APPROVAL_DECISION_REJECT,
    )
    return "DecideApproval", request, ABSENT


def _cursor(theirs: Loot, rng: random.Random) -> Probe | None:
    """Goes on where a reader of the other tenant was, often in a session of its own with the same id."""
    if not theirs.cursors:
        return None
    session_id, cursor = rng.choice(theirs.cursors)
    return "WatchEvents", session_pb2.WatchEventsRequest(session_id=session_id, after=cursor), REFUSED


def _page_token(theirs: Loot, rng: random.Random) -> Probe | None:
    if not theirs.page_tokens:
        return None
    size, token = rng.choice(theirs.page_tokens)
    return "ListSessions", session_pb2.ListSessionsRequest(page_size=size, page_token=token), REFUSED


_NewProbe = Callable[[Loot, random.Random], Probe | None]
_PROBES: Final[Mapping[str, _NewProbe]] = {
    "session": _of_session(session_pb2.GetSessionRequest, "GetSession"),
    "events": _of_session(session_pb2.ListEventsRequest, "ListEvents"),
    "messages": _of_session(session_pb2.ListMessagesRequest, "ListMessages"),
    "turns": _of_session(chat_pb2.ListTurnsRequest, "ListTurns"),
    "stream": _of_session(session_pb2.WatchEventsRequest, "WatchEvents", follow=True, previews=True),
    "end": _of_session(session_pb2.EndSessionRequest, "EndSession"),
    "approvals": _of_session(approval_pb2.ListApprovalsRequest, "ListApprovals", EMPTY),
    "turn": _of_turn(chat_pb2.GetTurnRequest, "GetTurn"),
    "cancel": _of_turn(chat_pb2.CancelTurnRequest, "CancelTurn"),
    "approval": _of_approval(approval_pb2.GetApprovalRequest, "GetApproval"),
    "decided": _of_approval(approval_pb2.WaitApprovalRequest, "WaitApproval", wait=Duration(seconds=1)),
    "decision": _decision,
    "cursor": _cursor,
    "page": _page_token,
}
"""The probes, by what they ask for; None where nothing of the kind was found yet."""
