# Generated from ../session.py by `make sync-client`. Do not edit.
"""One session: send messages, stream turns, follow and read its events."""

from collections.abc import Iterator, Sequence

from turnkeeper_client.pb.v1 import chat_pb2, session_pb2
from turnkeeper_client.pb.v1.chat_pb2 import ClientTool, CreateSessionParams, IfBusy, Turn, TurnLimits, TurnState
from turnkeeper_client.pb.v1.event_pb2 import Event
from turnkeeper_client.pb.v1.message_pb2 import Message, Part
from turnkeeper_client.requests import STREAM_TIMEOUT, WAIT_TIMEOUT, Seconds, duration, new_request_id, parts
from turnkeeper_client.resume import ResumePolicy
from turnkeeper_client.sync.calls import call, every
from turnkeeper_client.sync.streams import EventStream, TurnStream
from turnkeeper_client.sync.stubs import Stubs
from turnkeeper_client.sync.wire import StreamCall


class Session:
    """A handle of a session, by its id. Made by `client.sessions`, or without a call by `client.session(id)`."""

    def __init__(self, stubs: Stubs, session_id: str, *, policy: ResumePolicy) -> None:
        self.id = session_id
        self._stubs = stubs
        self._policy = policy

    def __repr__(self) -> str:
        return f"Session({self.id!r})"

    def send(
        self,
        content: str | Sequence[Part],
        *,
        if_busy: IfBusy.ValueType = chat_pb2.IF_BUSY_UNSPECIFIED,
        wait: Seconds | None = None,
        create_session: CreateSessionParams | None = None,
        response_schema_json: str = "",
        limits: TurnLimits | None = None,
        client_tools: Sequence[ClientTool] = (),
        request_id: str = "",
    ) -> Turn:
        """Sends a message. Returns its turn as it is after `wait`: ended, waiting or still running.

        `wait`: unset 60 s, at most 120 s, 0 returns once the message is accepted. Raises the error of a turn that
        failed. A repeat with the same `request_id` never sends twice.
        """
        request = chat_pb2.SendMessageRequest(
            session_id=self.id,
            request_id=request_id or new_request_id(),
            content=parts(content),
            if_busy=if_busy,
            wait=duration(wait),
            create_session=create_session,
            response_schema_json=response_schema_json,
            limits=limits,
            client_tools=client_tools,
        )
        return (call(self._stubs.chat.SendMessage, request, timeout=WAIT_TIMEOUT)).turn

    def stream(
        self,
        content: str | Sequence[Part],
        *,
        if_busy: IfBusy.ValueType = chat_pb2.IF_BUSY_UNSPECIFIED,
        previews: bool = True,
        delta_interval: Seconds | None = None,
        create_session: CreateSessionParams | None = None,
        response_schema_json: str = "",
        limits: TurnLimits | None = None,
        client_tools: Sequence[ClientTool] = (),
        request_id: str = "",
        after: str = "",
    ) -> TurnStream:
        """Sends a message once the result is iterated over, and yields its turn's events.

        `after`: a cursor, to go on with a message that was sent before with the same `request_id` and content.
        `delta_interval`: deltas come at most once in this time; 0: each as it comes; None: as the server is set.
        """
        request = chat_pb2.StreamMessageRequest(
            session_id=self.id,
            request_id=request_id or new_request_id(),
            content=parts(content),
            if_busy=if_busy,
            previews=previews,
            create_session=create_session,
            response_schema_json=response_schema_json,
            limits=limits,
            client_tools=client_tools,
            delta_interval=duration(delta_interval, "delta_interval"),
        )

        def open_call(cursor: str) -> StreamCall:
            request.after = cursor
            return self._stubs.chat.StreamMessage(request, timeout=STREAM_TIMEOUT)

        return TurnStream(
            open_call, start=after, policy=self._policy, request_id=request.request_id, tokens=self._stubs.tokens
        )

    def follow(
        self,
        *,
        after: str | int | None = None,
        live_only: bool = False,
        until_caught_up: bool = False,
        types: Sequence[str] = (),
        previews: bool = True,
        turn_id: str = "",
        delta_interval: Seconds | None = None,
    ) -> EventStream:
        """Yields the session's events from a cursor on, then those to come, until the session ends.

        `after`: a cursor or the number of an event; None: from the beginning. `live_only`: only what happens from now
        on. `until_caught_up`: end when all that is there was delivered. `types`: names of payloads, such as
        `turn_completed`; only these durable events are sent. `delta_interval`: see `stream`.
        """
        request = session_pb2.WatchEventsRequest(
            session_id=self.id,
            follow=not until_caught_up,
            types=types,
            previews=previews,
            turn_id=turn_id,
            delta_interval=duration(delta_interval, "delta_interval"),
        )
        if live_only:
            request.live_only = True
        start(request, after)

        def open_call(cursor: str) -> StreamCall:
            if cursor:
                request.after = cursor
            return self._stubs.sessions.WatchEvents(request, timeout=STREAM_TIMEOUT)

        begin = after if isinstance(after, str) else ""
        return EventStream(open_call, start=begin, policy=self._policy, tokens=self._stubs.tokens)

    def get(self) -> session_pb2.Session:
        """Returns the session as it is now."""
        return (call(self._stubs.sessions.GetSession, session_pb2.GetSessionRequest(session_id=self.id))).session

    def end(self, reason: str = "") -> session_pb2.Session:
        """Ends the session: its turns are cancelled, its approvals withdrawn. Repeating it changes nothing."""
        request = session_pb2.EndSessionRequest(session_id=self.id, reason=reason)
        return (call(self._stubs.sessions.EndSession, request)).session

    def suspend(self) -> session_pb2.Session:
        """Suspends the session: no further step starts. Repeating it changes nothing."""
        request = session_pb2.SuspendSessionRequest(session_id=self.id)
        return (call(self._stubs.sessions.SuspendSession, request)).session

    def resume(self) -> session_pb2.Session:
        """Ends a suspension. Repeating it changes nothing."""
        request = session_pb2.ResumeSessionRequest(session_id=self.id)
        return (call(self._stubs.sessions.ResumeSession, request)).session

    def events(
        self, *, after: str | int | None = None, types: Sequence[str] = (), turn_id: str = ""
    ) -> Iterator[Event]:
        """Yields the durable events that exist now, read page by page."""
        request = session_pb2.ListEventsRequest(session_id=self.id, types=types, turn_id=turn_id)
        start(request, after)
        while True:
            response = call(self._stubs.sessions.ListEvents, request)
            for event in response.events:
                yield event
            if not response.more:
                return
            request.after = response.cursor

    def messages(self, *, newest_first: bool = False) -> Iterator[Message]:
        """Yields the messages that the next model call would send."""
        request = session_pb2.ListMessagesRequest(
            session_id=self.id, order_by="sequence desc" if newest_first else "sequence"
        )
        return every(self._stubs.sessions.ListMessages, request, lambda page: page.messages)

    def checkpoints(self) -> Iterator[session_pb2.Checkpoint]:
        """Yields the session's checkpoints, oldest first."""
        request = session_pb2.ListCheckpointsRequest(session_id=self.id)
        return every(self._stubs.sessions.ListCheckpoints, request, lambda page: page.checkpoints)

    def fork(self, place: str | int | None = None, *, new_session_id: str = "", request_id: str = "") -> "Session":
        """Returns a new session with this one's conversation, up to a checkpoint, an event's number, or all (None)."""
        request = session_pb2.ForkSessionRequest(
            session_id=self.id, request_id=request_id or new_request_id(), new_session_id=new_session_id
        )
        if isinstance(place, int):
            request.sequence = place
        elif place:
            request.checkpoint_id = place
        response = call(self._stubs.sessions.ForkSession, request)
        return Session(self._stubs, response.session.session_id, policy=self._policy)

    def restore(self, place: str | int, *, request_id: str = "") -> session_pb2.Session:
        """Takes the session back to a checkpoint, by its id, or to after an event, by its number.

        A repeat with the same `request_id` never restores twice.
        """
        request = session_pb2.RestoreCheckpointRequest(session_id=self.id, request_id=request_id or new_request_id())
        if isinstance(place, int):
            request.sequence = place
        else:
            request.checkpoint_id = place
        return (call(self._stubs.sessions.RestoreCheckpoint, request)).session

    def turn(self, turn_id: str, *, wait: Seconds | None = None) -> Turn:
        """Waits until a turn has ended or waits itself, or for `wait` (default 0, at most 120 s), and returns it."""
        request = chat_pb2.GetTurnRequest(session_id=self.id, turn_id=turn_id, wait=duration(wait))
        return (call(self._stubs.chat.GetTurn, request, timeout=WAIT_TIMEOUT)).turn

    def turns(self, *, states: Sequence[TurnState.ValueType] = ()) -> Iterator[Turn]:
        """Yields the session's turns, newest first."""
        request = chat_pb2.ListTurnsRequest(session_id=self.id, states=states)
        return every(self._stubs.chat.ListTurns, request, lambda page: page.turns)

    def cancel(self, turn_id: str) -> Turn:
        """Cancels a turn that waits, runs or is queued; one that has ended is returned as it is."""
        request = chat_pb2.CancelTurnRequest(session_id=self.id, turn_id=turn_id)
        return (call(self._stubs.chat.CancelTurn, request)).turn

    def retry(self, turn_id: str, *, request_id: str = "") -> Turn:
        """Retries the session's last turn after it failed or was cancelled. Returns without waiting for its end."""
        request = chat_pb2.RetryTurnRequest(
            session_id=self.id, turn_id=turn_id, request_id=request_id or new_request_id()
        )
        return (call(self._stubs.chat.RetryTurn, request)).turn

    def submit_tool_result(self, tool_call_id: str, result_json: str, *, failed: bool = False) -> Turn:
        """Submits the result of a tool that the client runs, as JSON text. Its turn goes on if nothing else is awaited.

        Repeating the same result changes nothing. Raises FailedPrecondition for a call that does not wait for a result.
        """
        request = chat_pb2.SubmitToolResultRequest(
            session_id=self.id, tool_call_id=tool_call_id, result_json=result_json, failed=failed
        )
        return (call(self._stubs.chat.SubmitToolResult, request)).turn


def start(request: session_pb2.WatchEventsRequest | session_pb2.ListEventsRequest, after: str | int | None) -> None:
    """Starts the request after a cursor or an event's number; at the beginning if neither is given."""
    if isinstance(after, int):
        request.after_sequence = after
    elif after:
        request.after = after
