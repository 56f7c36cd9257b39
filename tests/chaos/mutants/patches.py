"""The broken versions: each function breaks the service of this process in one way that seems plausible."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from tests.chaos.mutants import commits
from tests.chaos.mutants.decision_patches import DECISION_PATCHES
from tests.chaos.mutants.operator_patches import OPERATOR_PATCHES
from tests.chaos.mutants.tool_patches import TOOL_PATCHES
from turnkeeper.admission.gate import AdmittedCall, Gate, Kind
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import ToolClass, ToolOutcome
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.execution.turn_run import TurnRun
from turnkeeper.engine.replica.lapse_judge import LapseJudge
from turnkeeper.engine.rules import turns
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.errors import Overloaded
from turnkeeper.faults import fault
from turnkeeper.rpc.context import Run
from turnkeeper.rpc.refusals import CertainRefusals
from turnkeeper.store.changeset import Changeset, CommitResult, Conflict, Fenced
from turnkeeper.store.mongo import claims, client, heads, indexes
from turnkeeper.store.mongo.changesets import Changesets
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.head_claim import HeadClaim
from turnkeeper.store.mongo.reads import Reads
from turnkeeper.store.mongo.transactions import attempt as attempts
from turnkeeper.store.mongo.transactions import outcomes
from turnkeeper.store.mongo.transactions.group_commit import Entry, GroupCommit
from turnkeeper.store.mongo.transactions.writes import Obstacle, TransactionStopped, Writes
from turnkeeper.tools.toolbox import Finished

_commit = Changesets.commit


def two_step_numbering() -> None:
    """Takes the number first, then inserts the event: a death in between leaves a gap, a reader in between sees one."""

    async def commit(self: Changesets, changeset: Changeset) -> CommitResult:
        fault("step.before_first_write")
        connection = self._connection
        head = await connection.heads.find_one_and_update(
            heads.unmoved(changeset), heads.moved(changeset), return_document=True, projection=("last_seq", "fence")
        )
        if not head:
            async with connection.session() as session:
                return await self._outcomes.of_changeset(changeset, session) or Conflict()
        await asyncio.sleep(0.005)
        fault("step.after_first_write")
        return await commits.store(self, changeset, commits.taken(head), fence=head["fence"])

    Changesets.commit = commit  # type: ignore[method-assign]


def write_concern_1() -> None:
    """Acknowledges what one node has stored: a new primary without it takes it back."""
    loose = WriteConcern(w=1)
    setattr(attempts, "MAJORITY", loose)  # noqa: B010 - a constant, to the type checker

    _read_locally(w=1)


def _read_locally(**more: object) -> None:
    """Reads what this node has, instead of what a majority has."""

    def connect(*args: Any, **options: Any) -> Any:
        return AsyncIOMotorClient(*args, **{**options, "readConcernLevel": "local", **more})

    setattr(client, "AsyncIOMotorClient", connect)  # noqa: B010 - a class, to the type checker
    indexes._check_concerns = lambda connection: None  # noqa: ARG005, SLF001 - the service itself would refuse to start like this


def no_fence() -> None:
    """Lets an owner write without checking its fence."""

    async def commit(self: Changesets, changeset: Changeset) -> CommitResult:
        if changeset.fence is None:
            return await _commit(self, changeset)
        return await commits.store(self, changeset, commits.unconditional(self, changeset), fence=changeset.fence)

    async def renew(self: claims.Claims, key: SessionKey, **_: object) -> bool:
        return True

    async def renew_all(
        self: claims.Claims, leases: Mapping[SessionKey, int], **_: object
    ) -> Mapping[SessionKey, bool]:
        return dict.fromkeys(leases, True)

    Changesets.commit = commit  # type: ignore[method-assign]
    claims.Claims.renew = renew  # type: ignore[method-assign]
    claims.Claims.renew_all = renew_all  # type: ignore[method-assign]


def fence_read_not_written() -> None:
    """Lets an owner read its fence before the write, but take the number without it in the filter."""

    async def commit(self: Changesets, changeset: Changeset) -> CommitResult:
        if changeset.fence is None:
            return await _commit(self, changeset)
        head = await self._connection.heads.find_one(commits.session_of(changeset))
        if head is None or head["fence"] != changeset.fence or not head["owner"]:
            return Fenced()
        fault("step.before_first_write")
        return await commits.store(self, changeset, commits.unconditional(self, changeset), fence=changeset.fence)

    Changesets.commit = commit  # type: ignore[method-assign]


def state_only_filter() -> None:
    """Stores a decision if the approval is still pending, whatever else has changed since it was made."""

    async def commit(self: Changesets, changeset: Changeset) -> CommitResult:
        if changeset.fence is not None or not changeset.approvals:
            return await _commit(self, changeset)
        return await commits.store(self, changeset, commits.unconditional(self, changeset), fence=None)

    Changesets.commit = commit  # type: ignore[method-assign]


def unknown_is_aborted() -> None:
    """Takes a commit with an unknown outcome for aborted: its changeset is decided anew."""

    async def commit_once(self: attempts.Attempt, writes: Writes, first: PyMongoError) -> None:
        self.open = None
        raise TransactionStopped(Obstacle.CONFLICT) from first

    async def of_changeset(self: outcomes.Outcomes, changeset: Changeset, session: object) -> CommitResult | None:
        return Conflict()

    attempts.Attempt._commit_again = commit_once  # type: ignore[method-assign]  # noqa: SLF001 - what is broken
    outcomes.Outcomes.of_changeset = of_changeset  # type: ignore[method-assign]


def result_before_commit() -> None:
    """Acknowledges a batch when it is sent, before it is committed."""

    async def try_once(
        self: GroupCommit, batch: Sequence[Entry[Any]], attempt: attempts.Attempt
    ) -> TransactionStopped | None:
        for entry in batch:
            entry.settle(entry.transaction.result)
        await asyncio.sleep(0.2)
        return await _try_once(self, batch, attempt)

    GroupCommit._try_once = try_once  # type: ignore[method-assign]  # noqa: SLF001 - what is broken


_try_once = GroupCommit._try_once  # noqa: SLF001 - what the broken version does later


def loser_acknowledged() -> None:
    """Gives an entry whose head had changed when its batch was sent the result of the others."""

    async def split(_: GroupCommit, batch: Sequence[Entry[Any]], *__: object) -> None:
        for entry in batch:
            entry.settle(entry.transaction.result)

    GroupCommit._split = split  # type: ignore[assignment,method-assign]  # noqa: SLF001 - what is broken


def attempt_in_memory() -> None:
    """Lets an owner count its attempts from one: they are the same numbers as a lost owner's."""

    def next_attempt(self: Turn, **changes: Any) -> Turn:
        return replace(_next_attempt(self, **changes), attempt=1)

    Turn.next_attempt = next_attempt  # type: ignore[method-assign]


_next_attempt = Turn.next_attempt


def duplicate_without_reread() -> None:
    """Answers a duplicate key from what this node has, before a majority has it."""
    _read_locally()

    async def commit(self: Changesets, changeset: Changeset) -> CommitResult:
        if changeset.request is None:
            return await _commit(self, changeset)
        duplicate = await commits.local_duplicate(self, changeset)
        return duplicate or await _commit(self, changeset)

    Changesets.commit = commit  # type: ignore[method-assign]


def tool_retried() -> None:
    """Takes every tool for one that may be started again."""
    ToolClass.may_start_again = property(lambda _: True)  # type: ignore[method-assign,assignment]


def claim_given_up() -> None:
    """Takes a claim that is not answered in time for one that another replica was faster with, and goes on."""

    async def is_stored(self: HeadClaim) -> bool:
        return False

    HeadClaim._is_stored = is_stored  # type: ignore[method-assign]  # noqa: SLF001 - what is broken


def lapse_is_loss() -> None:
    """Takes a turn whose lease has lapsed from its owner, though the database was silent and no owner could renew."""
    LapseJudge.lapsed_by = lambda _: datetime.now(UTC) + timedelta(days=1)  # type: ignore[assignment,method-assign]


def question_at_once() -> None:
    """Asks a person at once for the outcome of a lost owner's call, though its result may still come."""
    TurnRun._awaited_late = lambda _: frozenset()  # type: ignore[assignment,method-assign]  # noqa: SLF001 - what is broken


def refusal_on_a_lagging_read() -> None:
    """Refuses a call by what it has read once, though a reading may lag behind what was acknowledged."""

    def checked(self: CertainRefusals, method: Run) -> Run:
        return method

    CertainRefusals.checked = checked  # type: ignore[method-assign]


def timeout_is_known() -> None:
    """Takes a timeout for an outcome: the model may start the tool again while the first still runs."""

    def record(uow: UnitOfWork, results: Sequence[Finished], **_: object) -> Sequence[ToolOutcome]:
        by_id = {call.id: call for call in uow.calls}
        for finished in results:
            uow.close_call(by_id[finished.call_id], finished.result, duration=finished.duration)
        return ()

    turns.record_tool_results = record


def finished_calls_only() -> None:
    """Counts calls when they have ended: a crowd is not seen while it is under way."""

    def begin_work(self: Gate, *, turns: int) -> None:
        pass

    def rest(self: AdmittedCall) -> None:
        pass

    def end(self: AdmittedCall) -> None:
        self._gate.at_work += 1

    def end_window(self: Gate) -> None:
        self.at_work = 0
        _end_window(self)

    Gate.begin_work = begin_work  # type: ignore[method-assign]
    AdmittedCall.rest = AdmittedCall.resume = rest  # type: ignore[method-assign]
    AdmittedCall.end = end  # type: ignore[method-assign]
    Gate.end_window = end_window  # type: ignore[method-assign]


_end_window = Gate.end_window


def refusal_without_retry_info() -> None:
    """Refuses calls, and does not tell when to come back: all callers do so at once."""

    def refused(self: Gate, kind: Kind, limit: str, *, after: float = 0.0) -> Overloaded:
        return Overloaded(metadata={"limit": limit})

    Gate.refused = refused  # type: ignore[method-assign]


def deadline_ignored_in_the_queue() -> None:
    """Stores what waits for the database, whether its caller still waits or not."""
    AdmittedCall.wanted_until = property(lambda _: math.inf, lambda *_: None)  # type: ignore[assignment,misc]


def no_tenant_filter() -> None:
    """Reads a turn, a call or an approval by its id, whose ever it is."""

    async def one(
        self: Reads, kind: type[Any], collection: Any, key: Mapping[str, Any], *, strict: bool = False
    ) -> Any:
        match = {name: value for name, value in key.items() if name != "tenant"}
        with self._reading("read_one") as read:
            document = await read(collection).find_one(match)
        return None if document is None else decode(kind, document, strict=strict)

    Reads._one = one  # type: ignore[method-assign]  # noqa: SLF001 - what is broken


class _ById(OrderedDict[SessionKey, Any]):
    """Finds what is kept of a session by the session's id alone."""

    def _found(self, key: SessionKey) -> SessionKey:
        return next((kept for kept in self if kept.session_id == key.session_id), key)

    def __setitem__(self, key: SessionKey, value: Any) -> None:
        super().__setitem__(self._found(key), value)

    def get(self, key: SessionKey, default: Any = None) -> Any:
        return super().get(self._found(key), default)

    def pop(self, key: SessionKey, *default: Any) -> Any:
        return super().pop(self._found(key), *default)


def feed_forgets_the_tenant() -> None:
    """Caches the latest events of a session under its id: a watcher has those of any tenant's session of that id."""

    def init(self: Feeds, *args: Any, **options: Any) -> None:
        _init_feeds(self, *args, **options)
        self._feeds = _ById()

    Feeds.__init__ = init  # type: ignore[method-assign]


_init_feeds = Feeds.__init__


def session_cache_forgets_the_tenant() -> None:
    """Caches sessions under their ids: a turn begins on what another tenant's session of that id has left."""

    def init(self: SessionCache, *args: Any, **options: Any) -> None:
        _init_cache(self, *args, **options)
        self._snapshots, self._conversations = _ById(), _ById()

    SessionCache.__init__ = init  # type: ignore[method-assign]


_init_cache = SessionCache.__init__


PATCHES: Mapping[str, Callable[[], None]] = {
    patch.__name__.replace("_", "-"): patch
    for patch in (
        two_step_numbering,
        write_concern_1,
        no_fence,
        fence_read_not_written,
        state_only_filter,
        unknown_is_aborted,
        result_before_commit,
        loser_acknowledged,
        attempt_in_memory,
        duplicate_without_reread,
        tool_retried,
        timeout_is_known,
        claim_given_up,
        lapse_is_loss,
        question_at_once,
        refusal_on_a_lagging_read,
        finished_calls_only,
        refusal_without_retry_info,
        deadline_ignored_in_the_queue,
        no_tenant_filter,
        feed_forgets_the_tenant,
        session_cache_forgets_the_tenant,
        *OPERATOR_PATCHES,
        *DECISION_PATCHES,
        *TOOL_PATCHES,
    )
}
