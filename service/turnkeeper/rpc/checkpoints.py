"""The RPCs of SessionService about positions in a log: list checkpoints, fork, restore."""

from collections.abc import Iterator
from contextlib import contextmanager

from turnkeeper.domain.checkpoint import event_named
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.checkpoints import Checkpoints, LogPosition
from turnkeeper.engine.forks import ForkRequest, Forks
from turnkeeper.engine.rules.sessions import RestoreRequest
from turnkeeper.engine.sessions import Sessions
from turnkeeper.errors import CursorExpired
from turnkeeper.identity.caller import Caller
from turnkeeper.pb.v1 import session_pb2
from turnkeeper.rpc import codec, cursor, validation
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.fingerprint import fingerprint
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.origins import operation_on
from turnkeeper.rpc.page_tokens import PageTokens
from turnkeeper.rpc.stream_responses import with_cursor
from turnkeeper.rpc.views import session_view
from turnkeeper.rpc.visible import VisibleSessions


class CheckpointVerbs:
    """A part of SessionService; SessionService sets these fields."""

    _sessions: Sessions
    _visible: VisibleSessions
    _checkpoints: Checkpoints
    _forks: Forks
    _page_tokens: PageTokens

    async def ListCheckpoints(
        self, request: session_pb2.ListCheckpointsRequest, context: Context
    ) -> session_pb2.ListCheckpointsResponse:
        caller = caller_of(context)
        _, head = await self._visible.get(caller, request.session_id)
        size = self._page_tokens.size(request.page_size)
        start = self._page_tokens.after(request, caller=caller)
        checkpoints = await self._checkpoints.page(head, after=int(start[0]) if start else 0, limit=size + 1)
        views, token = await self._page_tokens.page(
            checkpoints,
            request,
            caller=caller,
            size=size,
            key_of=lambda checkpoint: (event_named(checkpoint.checkpoint_id),),
            view=lambda checkpoint: codec.fill(session_pb2.Checkpoint(), checkpoint),
        )
        return session_pb2.ListCheckpointsResponse(checkpoints=views, next_page_token=token)

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: Context
    ) -> session_pb2.ForkSessionResponse:
        caller = caller_of(context)
        key = caller.request_key(request.request_id, family="fork_session", session_id=request.session_id)
        fork = ForkRequest(
            key=key,
            fingerprint=fingerprint(request, leaving_out=()),
            new_session_id=request.new_session_id,
            position=_position(request),
            through=caller.through,
        )
        with _with_cursors(caller.session_key(request.session_id)):
            session, head = await self._forks.fork(fork)
        return session_pb2.ForkSessionResponse(
            session=session_view(session, head),
            sequence=1,
            cursor=cursor.before(1, key=session.key),
        )

    async def RestoreCheckpoint(
        self, request: session_pb2.RestoreCheckpointRequest, context: Context
    ) -> session_pb2.RestoreCheckpointResponse:
        caller = caller_of(context)
        if request.WhichOneof("at") is None:
            validation.refuse({"sequence": "or checkpoint_id is required"})
        session, _ = await self._visible.get(caller, request.session_id)
        with _with_cursors(session.key):
            sequence = await self._checkpoints.restore(
                session.key,
                _position(request),
                request=_restore_request(request, caller),
                operation=operation_on(session, context, "restore_checkpoint"),
            )
        session, head = await self._sessions.get(session.key, through=sequence)
        return session_pb2.RestoreCheckpointResponse(
            session=session_view(session, head),
            sequence=sequence,
            cursor=cursor.before(sequence, key=session.key),
        )


@contextmanager
def _with_cursors(key: SessionKey) -> Iterator[None]:
    """Adds the cursors that a stream's error has to a CursorExpired that the block raises."""
    try:
        yield
    except CursorExpired as expired:
        raise with_cursor(expired, key) from None


def _restore_request(request: session_pb2.RestoreCheckpointRequest, caller: Caller) -> RestoreRequest | None:
    """Returns what makes a repeat of the request known, or None if it has no request_id."""
    if not request.request_id:
        return None
    key = caller.request_key(request.request_id, family="restore_checkpoint", session_id=request.session_id)
    return RestoreRequest(key=key, fingerprint=fingerprint(request, leaving_out=()))


def _position(request: session_pb2.RestoreCheckpointRequest | session_pb2.ForkSessionRequest) -> LogPosition:
    match request.WhichOneof("at"):
        case "sequence":
            return LogPosition(sequence=request.sequence)
        case "checkpoint_id":
            if not request.checkpoint_id:
                validation.refuse({"checkpoint_id": "is empty"})
            return LogPosition(checkpoint_id=request.checkpoint_id)
        case None:
            return LogPosition()
