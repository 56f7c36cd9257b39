"""ChatService: each method decodes the request, calls the engine, and encodes the response."""

from collections.abc import AsyncIterator, Sequence

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.json_text import object_problem
from turnkeeper.domain.message import Part
from turnkeeper.domain.turn import Turn, TurnOptions, TurnState
from turnkeeper.engine.client_tools import ClientTools
from turnkeeper.engine.rules.audit import CANCEL_TURN
from turnkeeper.engine.rules.messages import NewMessage, RetryRequest
from turnkeeper.engine.sessions import NewSession
from turnkeeper.engine.streaming.batch import EventFilter
from turnkeeper.engine.streaming.stream_end import StreamEnded
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.engine.turns import Turns
from turnkeeper.errors import NotImplementedYet, SessionError
from turnkeeper.errors_by_code import error_of
from turnkeeper.identity.caller import Caller
from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, session_pb2
from turnkeeper.rpc import client_tools, codec, cursor, validation
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.deadlines import DEFAULT_WAIT, within_deadline
from turnkeeper.rpc.direct_writes import direct_stream
from turnkeeper.rpc.fingerprint import fingerprint
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.origins import operation_on, origin_of
from turnkeeper.rpc.page_tokens import PageTokens
from turnkeeper.rpc.sessions import new_session
from turnkeeper.rpc.stream_responses import response, with_cursor
from turnkeeper.rpc.views import turn_view
from turnkeeper.rpc.visible import VisibleSessions
from turnkeeper.store.changeset import RequestRecord
from turnkeeper.store.contract import SessionLog
from turnkeeper.telemetry.spans import Spans

TEXT_BYTES = 256 * 1024
"""Bytes of text in one message, all parts together."""
FAMILY = "message"
"""SendMessage and StreamMessage share their request ids."""
SETTLES = frozenset({"approval_requested", "client_tool_requested", "tool_returned", "message_completed"})
"""The kinds of events after which a turn may wait for a decision, a client's tool, or its next model call."""
ENDS = frozenset({"turn_completed", "turn_failed", "turn_cancelled"})
"""The kinds of events that end a turn."""
_NEWS = ENDS | SETTLES

MessageRequest = chat_pb2.SendMessageRequest | chat_pb2.StreamMessageRequest


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """The RPCs about turns: send a message, wait for its turn, cancel it, retry it, submit its tools' results."""

    def __init__(
        self,
        turns: Turns,
        visible: VisibleSessions,
        tools: ClientTools,
        store: SessionLog,
        *,
        watchers: Watchers,
        page_tokens: PageTokens,
    ) -> None:
        self._turns = turns
        self._visible = visible
        self._tools = tools
        self._store = store
        self._watchers = watchers
        self._page_tokens = page_tokens

    async def SendMessage(self, request: chat_pb2.SendMessageRequest, context: Context) -> chat_pb2.SendMessageResponse:
        caller = caller_of(context)
        new = _checked(request, caller)
        key = new.key if new is not None else caller.session_key(request.session_id)
        wait = codec.seconds(request.wait) if request.HasField("wait") else DEFAULT_WAIT
        with self._turns.waiting(key) as waiting:
            record = await self._accept(request, context, session_id=key.session_id, new=new)
            turn = await self._turns.wait(waiting, key, record.turn_id, seconds=within_deadline(wait, context))
        _raise_failure(turn)
        return chat_pb2.SendMessageResponse(
            turn=turn_view(turn), sequence=record.sequence, cursor=cursor.before(record.sequence, key=turn.session_key)
        )

    async def StreamMessage(
        self, request: chat_pb2.StreamMessageRequest, context: Context
    ) -> AsyncIterator[chat_pb2.StreamMessageResponse]:
        caller = caller_of(context)
        new = _checked(request, caller)
        key = new.key if new is not None else caller.session_key(request.session_id)
        start = cursor.decode(request.after, key=key) if request.after else None
        settled: Turn | None = None
        with self._watchers.open(key, caches_turns=True) as watcher:
            record = await self._accept(request, context, session_id=key.session_id, new=new)
            previews = request.previews if request.HasField("previews") else True
            position = start or StreamPosition(sequence=record.sequence - 1, live=True)
            watcher.write_directly(direct_stream(key), looked_at=_NEWS)
            try:
                await watcher.begin(
                    position,
                    EventFilter(turn_id=record.turn_id, previews=previews),
                    delta_interval=codec.optional_seconds(request, "delta_interval"),
                )
                while settled is None and (batch := await watcher.next()):
                    # Also at a keep-alive: a reading that lags may have shown the turn as it was before its end.
                    if batch.caught_up or not batch.events or batch.kinds & _NEWS:
                        settled = await self._turns.settled(key, record.turn_id, watcher)
                    data = response(batch, key)
                    yield data + _turn_field(settled) if settled else data  # type: ignore[misc]  # bytes pass through
            except (StreamEnded, SessionError) as end:
                raise with_cursor(end, key, watcher=watcher) from None
        if settled is not None:
            _raise_failure(settled)

    async def GetTurn(self, request: chat_pb2.GetTurnRequest, context: Context) -> chat_pb2.GetTurnResponse:
        caller = caller_of(context)
        session, _ = await self._visible.get(caller, request.session_id)
        self._visible.check_again(caller, session)
        key = session.key
        wait = within_deadline(codec.seconds(request.wait), context)
        with self._turns.waiting(key) as waiting:
            turn = await self._turns.wait(waiting, key, request.turn_id, seconds=wait)
        return chat_pb2.GetTurnResponse(turn=turn_view(turn))

    async def ListTurns(self, request: chat_pb2.ListTurnsRequest, context: Context) -> chat_pb2.ListTurnsResponse:
        caller = caller_of(context)
        await self._visible.get(caller, request.session_id)
        size = self._page_tokens.size(request.page_size)
        start = self._page_tokens.after(request, caller=caller)
        turns = await self._store.turns(
            caller.session_key(request.session_id),
            states=_states(request.states),
            limit=size + 1,
            before=int(start[0]) if start else None,
        )
        views, token = await self._page_tokens.page(
            turns,
            request,
            caller=caller,
            size=size,
            key_of=lambda turn: (turn.first_sequence,),
            view=turn_view,
        )
        return chat_pb2.ListTurnsResponse(turns=views, next_page_token=token)

    async def CancelTurn(self, request: chat_pb2.CancelTurnRequest, context: Context) -> chat_pb2.CancelTurnResponse:
        caller = caller_of(context)
        session, head = await self._visible.get(caller, request.session_id)
        turn, sequence = await self._turns.cancel(
            session.key,
            request.turn_id,
            by=caller.principal,
            operation=operation_on(session, context, CANCEL_TURN),
        )
        return chat_pb2.CancelTurnResponse(
            turn=turn_view(turn),
            sequence=sequence,
            cursor=cursor.before(sequence or head.last_seq + 1, key=turn.session_key),
        )

    async def RetryTurn(self, request: chat_pb2.RetryTurnRequest, context: Context) -> chat_pb2.RetryTurnResponse:
        caller = caller_of(context)
        session, _ = await self._visible.get(caller, request.session_id)
        key = caller.request_key(request.request_id, family="retry_turn", session_id=request.session_id)
        record = await self._turns.retry(
            RetryRequest(
                key=key,
                fingerprint=fingerprint(request, leaving_out=("request_id",)),
                turn_id=request.turn_id,
                through=caller.through,
                operation=operation_on(session, context, "retry_turn"),
            )
        )
        turn = await self._turns.after(session.key, record)
        return chat_pb2.RetryTurnResponse(
            turn=turn_view(turn), sequence=record.sequence, cursor=cursor.before(record.sequence, key=turn.session_key)
        )

    async def SubmitToolResult(
        self, request: chat_pb2.SubmitToolResultRequest, context: Context
    ) -> chat_pb2.SubmitToolResultResponse:
        caller = caller_of(context)
        result = client_tools.result_of(request)
        await self._visible.get(caller, request.session_id)
        turn, sequence = await self._tools.submit(
            caller.session_key(request.session_id),
            request.tool_call_id,
            result,
            by=caller.principal,
            through=caller.through,
        )
        return chat_pb2.SubmitToolResultResponse(
            turn=turn_view(turn), sequence=sequence, cursor=cursor.before(sequence, key=turn.session_key)
        )

    async def _accept(
        self, request: MessageRequest, context: Context, *, session_id: str, new: NewSession | None
    ) -> RequestRecord:
        """Starts the message's turn. Returns its record, or the record of the first request if this is a repeat."""
        key = caller_of(context).request_key(request.request_id, family=FAMILY, session_id=session_id)
        busy = request.if_busy or chat_pb2.IF_BUSY_REJECT
        message = NewMessage(
            key=key,
            fingerprint=_fingerprint(request),
            content=tuple(Part(text=part.text) for part in request.content),
            if_busy=chat_pb2.IfBusy.Name(busy).removeprefix("IF_BUSY_"),
            options=TurnOptions(
                response_schema_json=request.response_schema_json,
                max_iterations=request.limits.max_iterations,
                max_output_tokens=request.limits.max_output_tokens,
                client_tools=client_tools.tools_of(request),
            ),
            origin=origin_of(context),
            trace=Spans.traceparent(),
        )
        record = await self._turns.start(message, new=new)
        Spans.call_concerns(session_id=session_id, turn_id=record.turn_id)
        return record


def _checked(request: MessageRequest, caller: Caller) -> NewSession | None:
    """Returns the session that the message creates if there is none, or None if the request does not ask for that.

    Raises InvalidRequest, or NotImplementedYet, for what the rules of single fields cannot express.
    """
    _check(request)
    return _new_session(request, caller) if request.HasField("create_session") else None


def _new_session(request: MessageRequest, caller: Caller) -> NewSession:
    params = request.create_session
    create = session_pb2.CreateSessionRequest(
        session_id=request.session_id,
        request_id=request.request_id,
        agent=params.agent,
        title=params.title,
        labels=params.labels,
    )
    return new_session(create, caller, family=FAMILY)


def _turn_field(turn: Turn) -> bytes:
    """Returns the bytes of StreamMessageResponse.turn, to be appended to a response."""
    return chat_pb2.StreamMessageResponse(turn=turn_view(turn)).SerializeToString()


def _check(request: MessageRequest) -> None:
    """Raises InvalidRequest, or NotImplementedYet, for what the rules of single fields cannot express."""
    problems = _content_problems(request) | client_tools.problems(client_tools.tools_of(request))
    creates = request.HasField("create_session")
    if not request.session_id and not creates:
        problems["session_id"] = "is required, unless create_session is given"
    if request.response_schema_json and (problem := object_problem(request.response_schema_json)):
        problems["response_schema_json"] = problem
    if problems:
        validation.refuse(problems)


def _content_problems(request: MessageRequest) -> dict[str, str]:
    problems: dict[str, str] = {}
    size = 0
    for number, part in enumerate(request.content):
        kind = part.WhichOneof("kind")
        if kind not in (None, "text"):
            raise NotImplementedYet(
                f"Content of kind {kind} comes with a later release; send text.",
                metadata={"field": f"content[{number}].{kind}"},
            )
        size += len(part.text.encode())
        if not part.text:
            problems[f"content[{number}].text"] = "is empty"
    if size > TEXT_BYTES:
        problems["content"] = f"has {size} bytes of text; at most {TEXT_BYTES} are allowed"
    return problems


def _fingerprint(request: MessageRequest) -> str:
    """Returns the same fingerprint for one message, whether SendMessage or StreamMessage carries it."""
    same = chat_pb2.SendMessageRequest(
        session_id=request.session_id,
        content=request.content,
        if_busy=request.if_busy or chat_pb2.IF_BUSY_REJECT,
        response_schema_json=request.response_schema_json,
        client_tools=request.client_tools,
    )
    if request.HasField("create_session"):
        same.create_session.CopyFrom(request.create_session)
    if request.limits.ByteSize():
        same.limits.CopyFrom(request.limits)
    return fingerprint(same, leaving_out=())


def _raise_failure(turn: Turn) -> None:
    """Raises the turn's own error if it has failed."""
    if turn.state is TurnState.FAILED and turn.error is not None:
        raise error_of(turn.error, session_id=turn.session_id, turn_id=turn.id)


def _states(states: Sequence[chat_pb2.TurnState.ValueType]) -> tuple[TurnState, ...]:
    return tuple(TurnState(chat_pb2.TurnState.Name(state).removeprefix("TURN_STATE_")) for state in states if state)
