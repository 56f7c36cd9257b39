"""SessionService: decode, one verb, encode."""

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.history import HistoryEntry
from turnkeeper.domain.message import Role
from turnkeeper.domain.session import SessionKey, SessionState
from turnkeeper.engine.checkpoints import Checkpoints
from turnkeeper.engine.forks import Forks
from turnkeeper.engine.sessions import NewSession, Sessions
from turnkeeper.engine.streaming.batch import EventFilter
from turnkeeper.engine.streaming.watcher import StreamEnded, Watchers
from turnkeeper.errors import CursorExpired, TurnNotFound
from turnkeeper.pb.v1 import event_pb2, message_pb2, session_pb2, session_pb2_grpc
from turnkeeper.rpc import codec, cursor
from turnkeeper.rpc import page_tokens as pages
from turnkeeper.rpc import session_fields as attributes
from turnkeeper.rpc import validation as rules
from turnkeeper.rpc.checkpoints import CheckpointVerbs
from turnkeeper.rpc.fingerprint import fingerprint
from turnkeeper.rpc.identity import Caller, caller_of
from turnkeeper.rpc.interceptor import Context
from turnkeeper.rpc.lifecycle import LifecycleVerbs
from turnkeeper.rpc.stream_responses import response, with_cursor
from turnkeeper.rpc.views import session_view
from turnkeeper.store.changeset import check_kept
from turnkeeper.store.contract import SessionLog
from turnkeeper.store.filters import SessionFilter

PREVIEWS = frozenset({"content_delta", "tool_progress"})
KNOWN = frozenset(field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields) - PREVIEWS
"""The names of all durable events, also of those that a later release sends."""


class SessionService(CheckpointVerbs, LifecycleVerbs, session_pb2_grpc.SessionServiceServicer):
    """What a caller does with sessions and their logs."""

    def __init__(
        self,
        sessions: Sessions,
        store: SessionLog,
        *,
        checkpoints: Checkpoints,
        forks: Forks,
        watchers: Watchers,
        pages: pages.PageTokens,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._watchers = watchers
        self._pages = pages
        self._codec = codec.WireCodec()
        self._checkpoints = checkpoints
        self._forks = forks

    async def CreateSession(
        self, request: session_pb2.CreateSessionRequest, context: Context
    ) -> session_pb2.CreateSessionResponse:
        caller = caller_of(context)
        session, head = await self._sessions.create(new_session(request, caller))
        return session_pb2.CreateSessionResponse(
            session=session_view(session, head),
            sequence=1,
            cursor=cursor.encode(StreamPosition(), key=session.key),
        )

    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        session, head = await self._sessions.get(caller_of(context).session_key(request.session_id))
        return session_pb2.GetSessionResponse(session=session_view(session, head))

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        caller = caller_of(context)
        size = self._pages.size(request.page_size)
        found = await self._store.sessions(
            caller.tenant,
            _session_filter(request),
            limit=size + 1,
            after=pages.by_time(self._pages.after(request, tenant=caller.tenant)),
        )
        page, token = self._pages.split(
            found,
            request,
            tenant=caller.tenant,
            size=size,
            place=lambda item: pages.of_time(item[0].create_time, item[0].id),
            view=lambda item: session_view(*item),
        )
        return session_pb2.ListSessionsResponse(sessions=page, next_page_token=token)

    async def WatchEvents(
        self, request: session_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[session_pb2.WatchEventsResponse]:
        caller = caller_of(context)
        key = caller.session_key(request.session_id)
        with self._watchers.open(key) as watcher:
            session, head = await self._sessions.get(key)
            await self._check_turn(key, request.turn_id)
            wanted = EventFilter(
                kinds=_kinds(request.types),
                turn_id=request.turn_id,
                previews=request.previews,
                forever=request.follow and not session.state.over,
            )
            start = self._start(request, caller, last_seq=head.last_seq)
            try:
                await watcher.begin(start, wanted, head=head)
                del request, session, head, start, wanted  # streams live long, and are many
                while batch := await watcher.next():
                    made = response(batch, key)
                    del batch
                    yield made  # type: ignore[misc]  # bytes pass through
                    del made
            except (StreamEnded, CursorExpired) as end:
                raise with_cursor(end, key) from None

    async def ListEvents(
        self, request: session_pb2.ListEventsRequest, context: Context
    ) -> session_pb2.ListEventsResponse:
        caller = caller_of(context)
        key = caller.session_key(request.session_id)
        _, head = await self._sessions.get(key)
        await self._check_turn(key, request.turn_id)
        after = self._start(request, caller, last_seq=head.last_seq).sequence
        size = self._pages.size(request.page_size)
        found = await self._store.events(
            key,
            after=after,
            limit=size + 1,
            kinds=_kinds(request.types),
            turn_id=request.turn_id,
            until=head.last_seq,
        )
        try:  # after the page was read: what was trimmed meanwhile is noticed
            check_kept(after, (await self._sessions.get(key))[1])
        except CursorExpired as expired:
            raise with_cursor(expired, key) from None
        page = pages.fitting(found[:size], bytes_of=lambda event: len(event.payload))
        more = len(found) > len(page)
        through = page[-1].sequence if more else head.last_seq
        response = session_pb2.ListEventsResponse(
            cursor=cursor.encode(StreamPosition(sequence=through), key=key),
            through_sequence=through,
            more=more,
        )
        for stored in page:
            response.events.add().MergeFromString(stored.payload)
        return response

    async def ListMessages(
        self, request: session_pb2.ListMessagesRequest, context: Context
    ) -> session_pb2.ListMessagesResponse:
        caller = caller_of(context)
        entries = list(enumerate(await self._sessions.messages(caller.session_key(request.session_id))))
        start = self._pages.after(request, tenant=caller.tenant)
        # Counted from the oldest: messages that come between two pages move no place.
        if _descending(request.order_by, "sequence"):
            entries = entries[: int(start[0]) if start else None][::-1]
        elif start:
            entries = entries[int(start[0]) + 1 :]
        size = self._pages.size(request.page_size)
        page, token = self._pages.split(
            entries[: size + 1],
            request,
            tenant=caller.tenant,
            size=size,
            place=lambda item: (item[0],),
            view=lambda item: _message(item[1]),
        )
        return session_pb2.ListMessagesResponse(messages=page, next_page_token=token)

    async def _check_turn(self, key: SessionKey, turn_id: str) -> None:
        """Ids of turns are ours, so one that is not there never will be. Raises TurnNotFound."""
        if turn_id and await self._store.turn(key, turn_id) is None:
            raise TurnNotFound(session_id=key.session_id, turn_id=turn_id)

    def _start(
        self,
        request: session_pb2.WatchEventsRequest | session_pb2.ListEventsRequest,
        caller: Caller,
        *,
        last_seq: int,
    ) -> StreamPosition:
        place, field = StreamPosition(), request.WhichOneof("start") or ""
        match field:
            case "after":
                place = cursor.decode(request.after, key=caller.session_key(request.session_id))
            case "after_sequence":
                place = StreamPosition(sequence=request.after_sequence)
            case "live_only" if getattr(request, "live_only", False):
                place = StreamPosition(sequence=last_seq)
        if place.sequence > last_seq:
            rules.refuse({field: f"is beyond the last event, {last_seq}"})
        return place


def new_session(
    request: session_pb2.CreateSessionRequest, caller: Caller, *, family: str = "create_session"
) -> NewSession:
    """Checks what the table of rules cannot say."""
    problems: dict[str, str] = {}
    if not request.session_id and not request.request_id:
        problems["request_id"] = "is required without session_id: it makes repeats harmless"
    metadata_json = ""
    if request.HasField("metadata"):
        metadata_json = attributes.json_of(request.metadata)
        if problem := attributes.metadata_problem(metadata_json):
            problems["metadata"] = problem
    if problem := attributes.labels_problem(request.labels):
        problems["labels"] = problem
    if problems:
        rules.refuse(problems)
    return NewSession(
        tenant=caller.tenant,
        principal=caller.principal,
        session_id=request.session_id,
        family=family,
        request_id=request.request_id,
        agent=request.agent,
        title=request.title,
        labels=dict(request.labels),
        metadata_json=metadata_json,
        fingerprint=fingerprint(request, leaving_out=("request_id",)),
    )


def _session_filter(request: session_pb2.ListSessionsRequest) -> SessionFilter:
    return SessionFilter(
        states=tuple(SessionState(_name(state)) for state in request.states if state),
        agent=request.agent,
        owner=request.owner,
        labels=tuple(sorted(request.labels.items())),
        created_after=_time(request, "created_after"),
        created_before=_time(request, "created_before"),
        newest_first=request.order_by in ("", "create_time desc") or _descending(request.order_by, "create_time"),
    )


def _time(request: session_pb2.ListSessionsRequest, field: str) -> datetime | None:
    if not request.HasField(field):  # type: ignore[arg-type]  # one of its fields
        return None
    value: Timestamp = getattr(request, field)
    try:
        return value.ToDatetime(tzinfo=UTC)
    except ValueError:
        rules.refuse({field: "is no time between the years 1 and 9999"})


def _name(state: session_pb2.SessionState.ValueType) -> str:
    return session_pb2.SessionState.Name(state).removeprefix("SESSION_STATE_")


def _descending(order_by: str, field: str) -> bool:
    if order_by not in ("", field, f"{field} desc"):
        rules.refuse({"order_by": f"must be {field} or {field} desc"})
    return order_by.endswith(" desc")


def _kinds(types: Iterable[str]) -> frozenset[str]:
    kinds = frozenset(types)
    unknown = kinds - KNOWN
    if unknown:
        rules.refuse({"types": f"names no durable event: {', '.join(sorted(unknown))}"})
    return kinds


def _message(entry: HistoryEntry) -> message_pb2.Message:
    said = entry.message
    made = message_pb2.Message(
        role=message_pb2.Role.Value(f"ROLE_{said.role.value}"),
        tool_call_id=said.tool_call_id,
        message_id="" if said.role is Role.TOOL else entry.message_id,
        turn_id=entry.turn_id,
        sequence=entry.sequence,
        create_time=codec.timestamp(entry.create_time),
    )
    if said.text or said.role is not Role.ASSISTANT:
        made.content.add(text=said.text)
    for asked in said.tool_requests:
        codec.fill(made.tool_requests.add(), asked)
    if entry.finish_reason is not None:
        made.finish_reason = message_pb2.FinishReason.Value(f"FINISH_REASON_{entry.finish_reason.value}")
    return made
