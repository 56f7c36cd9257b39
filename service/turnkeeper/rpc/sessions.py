"""SessionService: each method decodes the request, calls the engine, and encodes the response."""

from collections.abc import AsyncIterator, Iterable

from turnkeeper.domain.cursor import StreamPosition, history_of
from turnkeeper.domain.history import HistoryEntry
from turnkeeper.domain.message import Role
from turnkeeper.domain.session import SessionKey, SessionState
from turnkeeper.engine.checkpoints import Checkpoints
from turnkeeper.engine.forks import Forks
from turnkeeper.engine.sessions import NewSession, Sessions
from turnkeeper.engine.streaming.batch import EventFilter
from turnkeeper.engine.streaming.stream_end import StreamEnded
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.errors import (
    CursorExpired,
    InvalidRequest,
    SessionError,
    TurnNotFound,
)
from turnkeeper.identity.caller import Caller
from turnkeeper.pb.v1 import event_pb2, message_pb2, session_pb2, session_pb2_grpc
from turnkeeper.rpc import codec, cursor, session_fields, validation
from turnkeeper.rpc.checkpoints import CheckpointVerbs
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.direct_writes import direct_stream
from turnkeeper.rpc.exports import grouped, lines_of_export
from turnkeeper.rpc.fingerprint import fingerprint
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.lifecycle import LifecycleVerbs
from turnkeeper.rpc.page_tokens import PageTokens, fitting, key_of_time, time_of_key
from turnkeeper.rpc.stream_responses import response, with_cursor
from turnkeeper.rpc.views import session_view
from turnkeeper.rpc.visible import VisibleSessions
from turnkeeper.store.audit import AuditStore
from turnkeeper.store.changeset import Head, LogEnd
from turnkeeper.store.contract import SessionLog
from turnkeeper.store.expired_cursors import check_history, check_not_ahead, check_not_trimmed, log_restored
from turnkeeper.store.filters import SessionFilter

PREVIEW_KINDS = frozenset({"content_delta", "tool_progress"})
"""The payloads of events without a number: not stored, and no filter of `types` may name them."""
DURABLE_KINDS = (
    frozenset(field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields) - PREVIEW_KINDS
)
"""The kinds of all durable events, also of those that only a later release sends."""


class SessionService(CheckpointVerbs, LifecycleVerbs, session_pb2_grpc.SessionServiceServicer):
    """The RPCs about sessions and their logs."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        sessions: Sessions,
        store: SessionLog,
        visible: VisibleSessions,
        *,
        audit: AuditStore,
        checkpoints: Checkpoints,
        forks: Forks,
        watchers: Watchers,
        page_tokens: PageTokens,
    ) -> None:
        self._sessions = sessions
        self._visible = visible
        self._store = store
        self._audit = audit
        self._watchers = watchers
        self._page_tokens = page_tokens
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
            cursor=cursor.before(1, key=session.key),
        )

    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.GetSessionResponse:
        session, head = await self._visible.get(caller_of(context), request.session_id)
        return session_pb2.GetSessionResponse(session=session_view(session, head))

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        caller = caller_of(context)
        size = self._page_tokens.size(request.page_size)
        session_filter = _session_filter(request, caller)
        after = time_of_key(self._page_tokens.after(request, caller=caller))
        if session_filter is None:
            return session_pb2.ListSessionsResponse()
        sessions = await self._store.sessions(caller.tenant, session_filter, limit=size + 1, after=after)
        views, token = await self._page_tokens.page(
            sessions,
            request,
            caller=caller,
            size=size,
            key_of=lambda item: key_of_time(item[0].create_time, item[0].id),
            view=lambda item: session_view(*item),
        )
        return session_pb2.ListSessionsResponse(sessions=views, next_page_token=token)

    async def WatchEvents(
        self, request: session_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[session_pb2.WatchEventsResponse]:
        caller = caller_of(context)
        key = caller.session_key(request.session_id)
        with self._watchers.open(key) as watcher:
            session, head = await self._visible.get(caller, request.session_id)
            self._visible.check_again(caller, session)
            await self._check_turn(key, request.turn_id)
            event_filter = EventFilter(
                kinds=_kinds(request.types),
                turn_id=request.turn_id,
                previews=request.previews,
                forever=request.follow and not session.state.over,
            )
            start = self._start(request, caller, head=head)
            watcher.write_directly(direct_stream(key))
            try:
                interval = codec.optional_seconds(request, "delta_interval")
                await watcher.begin(start, event_filter, head=head, delta_interval=interval)
                del request, session, head, start, event_filter  # a replica keeps thousands of streams open
                while batch := await watcher.next():
                    data = response(batch, key)
                    del batch
                    yield data  # type: ignore[misc]  # bytes pass through
                    del data
            except (StreamEnded, SessionError) as end:
                raise with_cursor(end, key, watcher=watcher) from None

    async def ListEvents(
        self, request: session_pb2.ListEventsRequest, context: Context
    ) -> session_pb2.ListEventsResponse:
        caller = caller_of(context)
        key = caller.session_key(request.session_id)
        _, head = await self._visible.get(caller, request.session_id)
        await self._check_turn(key, request.turn_id)
        start = self._start(request, caller, head=head)
        after = start.sequence
        size = self._page_tokens.size(request.page_size)
        events = await self._store.events(
            key,
            after=after,
            limit=size + 1,
            kinds=_kinds(request.types),
            turn_id=request.turn_id,
            until=head.last_seq,
        )
        try:  # checked after the page was read, so that a trim in the meantime is noticed
            _, now = await self._sessions.get(key)
            check_not_trimmed(after, now)
            await self._check_history(start, now)
        except CursorExpired as expired:
            raise with_cursor(expired, key) from None
        page = fitting(events[:size], bytes_of=lambda event: len(event.payload))
        more = len(events) > len(page)
        through = LogEnd(page[-1].sequence, page[-1].changeset_id) if more else head.end
        response = session_pb2.ListEventsResponse(
            cursor=cursor.encode(_position(through), key=key),
            through_sequence=through.sequence,
            more=more,
        )
        for stored in page:
            response.events.add().MergeFromString(stored.payload)
        return response

    async def ListMessages(
        self, request: session_pb2.ListMessagesRequest, context: Context
    ) -> session_pb2.ListMessagesResponse:
        caller = caller_of(context)
        session, head = await self._visible.get(caller, request.session_id)
        entries = await self._sessions.messages(session, head)
        start = self._page_tokens.after(request, caller=caller)
        size = self._page_tokens.size(request.page_size)
        # Keys count from the oldest message, so that messages added between two pages change no key.
        if validation.is_descending(request.order_by, "sequence"):
            last = min(int(start[0]), len(entries)) if start else len(entries)
            places = range(last - 1, max(last - size - 2, -1), -1)
        else:
            first = int(start[0]) + 1 if start else 0
            places = range(first, min(first + size + 1, len(entries)))
        views, token = await self._page_tokens.page(
            [(place, entries[place]) for place in places],
            request,
            caller=caller,
            size=size,
            key_of=lambda item: (item[0],),
            view=lambda item: _message_view(item[1]),
        )
        return session_pb2.ListMessagesResponse(messages=views, next_page_token=token)

    async def ExportSession(
        self, request: session_pb2.ExportSessionRequest, context: Context
    ) -> AsyncIterator[session_pb2.ExportSessionResponse]:
        session, head = await self._visible.get(caller_of(context), request.session_id)
        key = session.key
        async for lines in grouped(lines_of_export(self._store, self._audit, key, until=head.last_seq)):
            yield session_pb2.ExportSessionResponse(lines=lines).SerializeToString()  # type: ignore[misc]  # as above

    async def _check_turn(self, key: SessionKey, turn_id: str) -> None:
        """Raises TurnNotFound if the session has no such turn. Servers create the ids: none comes later."""
        if turn_id and await self._store.turn(key, turn_id) is None:
            raise TurnNotFound(session_id=key.session_id, turn_id=turn_id)

    async def _check_history(self, position: StreamPosition, head: Head) -> None:
        """Raises CursorExpired if the log no longer has what a reader at this position has seen."""
        if not position.history or position.sequence == head.last_seq:
            return
        if not await self._store.holds(head.session_key, LogEnd(position.sequence, position.history)):
            raise log_restored(head)

    def _start(
        self,
        request: session_pb2.WatchEventsRequest | session_pb2.ListEventsRequest,
        caller: Caller,
        *,
        head: Head,
    ) -> StreamPosition:
        """Returns where the events begin. Raises CursorExpired for a cursor beyond the last event, and InvalidRequest
        for such a number, which a caller may have typed."""
        position, field = StreamPosition(), request.WhichOneof("start") or ""
        match field:
            case "after":
                position = cursor.decode(request.after, key=caller.session_key(request.session_id))
            case "after_sequence":
                position = StreamPosition(sequence=request.after_sequence)
            case "live_only" if getattr(request, "live_only", False):
                position = _position(head.end)
        if field == "after_sequence" and position.sequence > head.last_seq:
            problem = f"is beyond the last event, {head.last_seq}"
            error = InvalidRequest(f"after_sequence {problem}.", session_id=head.session_id, fields={field: problem})
            error.rests_on_reading = True
            raise error
        try:
            check_not_ahead(position.sequence, head)
            check_history(position, head)
        except CursorExpired as expired:
            raise with_cursor(expired, head.session_key) from None
        return position


def _position(end: LogEnd) -> StreamPosition:
    return StreamPosition(sequence=end.sequence, history=history_of(end.changeset_id))


def new_session(
    request: session_pb2.CreateSessionRequest, caller: Caller, *, family: str = "create_session"
) -> NewSession:
    """Returns the session to create. Raises InvalidRequest for what the rules of single fields cannot express."""
    problems: dict[str, str] = {}
    if not request.session_id and not request.request_id:
        problems["request_id"] = "is required without session_id: it makes repeats harmless"
    metadata_json = ""
    if request.HasField("metadata"):
        metadata_json = session_fields.json_of(request.metadata)
        if problem := session_fields.metadata_problem(metadata_json):
            problems["metadata"] = problem
    if problem := session_fields.labels_problem(request.labels):
        problems["labels"] = problem
    if problems:
        validation.refuse(problems)
    return NewSession(
        tenant=caller.tenant,
        principal=caller.principal,
        through=caller.through,
        session_id=request.session_id,
        family=family,
        request_id=request.request_id,
        agent=request.agent,
        title=request.title,
        labels=dict(request.labels),
        metadata_json=metadata_json,
        fingerprint=fingerprint(request, leaving_out=("request_id",)),
    )


def _session_filter(request: session_pb2.ListSessionsRequest, caller: Caller) -> SessionFilter | None:
    """Returns the filter of the sessions that the caller may see, or None if it may see none of those that it names."""
    owner = request.owner
    if request.mine or not caller.sees_tenant:
        if owner not in ("", caller.principal):
            return None
        owner = caller.principal
    return SessionFilter(
        states=tuple(SessionState(_name(state)) for state in request.states if state),
        agent=request.agent,
        owner=owner,
        labels=tuple(sorted(request.labels.items())),
        created_after=validation.optional_time(request, "created_after"),
        created_before=validation.optional_time(request, "created_before"),
        newest_first=request.order_by in ("", "create_time desc")
        or validation.is_descending(request.order_by, "create_time"),
    )


def _name(state: session_pb2.SessionState.ValueType) -> str:
    return session_pb2.SessionState.Name(state).removeprefix("SESSION_STATE_")


def _kinds(types: Iterable[str]) -> frozenset[str]:
    kinds = frozenset(types)
    unknown = kinds - DURABLE_KINDS
    if unknown:
        validation.refuse({"types": f"names no durable event: {', '.join(sorted(unknown))}"})
    return kinds


def _message_view(entry: HistoryEntry) -> message_pb2.Message:
    message = entry.message
    view = message_pb2.Message(
        role=message_pb2.Role.Value(f"ROLE_{message.role.value}"),
        tool_call_id=message.tool_call_id,
        message_id="" if message.role is Role.TOOL else entry.message_id,
        turn_id=entry.turn_id,
        sequence=entry.sequence,
        create_time=codec.timestamp(entry.create_time),
    )
    if message.text or message.role is not Role.ASSISTANT:
        view.content.add(text=message.text)
    for tool_request in message.tool_requests:
        codec.fill(view.tool_requests.add(), tool_request)
    if entry.finish_reason is not None:
        view.finish_reason = message_pb2.FinishReason.Value(f"FINISH_REASON_{entry.finish_reason.value}")
    return view
