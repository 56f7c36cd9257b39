"""The verbs of SessionService about places in a log: decode, one verb, encode."""

from collections.abc import Iterator
from contextlib import contextmanager

from turnkeeper.domain.checkpoint import event_named
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.checkpoints import Checkpoints, LogPosition
from turnkeeper.engine.forks import ForkRequest, Forks
from turnkeeper.engine.rules.sessions import RestoreRequest
from turnkeeper.engine.sessions import Sessions
from turnkeeper.errors import CursorExpired
from turnkeeper.pb.v1 import session_pb2
from turnkeeper.rpc import codec, cursor
from turnkeeper.rpc import validation as rules
from turnkeeper.rpc.fingerprint import fingerprint
from turnkeeper.rpc.identity import Caller, caller_of
from turnkeeper.rpc.interceptor import Context
from turnkeeper.rpc.page_tokens import PageTokens
from turnkeeper.rpc.stream_responses import with_cursor
from turnkeeper.rpc.views import session_view


class CheckpointVerbs:
    """A part of SessionService, which has these."""

    _sessions: Sessions
    _checkpoints: Checkpoints
    _forks: Forks
    _pages: PageTokens

    async def ListCheckpoints(
        self, request: session_pb2.ListCheckpointsRequest, context: Context
    ) -> session_pb2.ListCheckpointsResponse:
        caller = caller_of(context)
        _, head = await self._sessions.get(caller.session_key(request.session_id))
        size = self._pages.size(request.page_size)
        start = self._pages.after(request, tenant=caller.tenant)
        found = await self._checkpoints.page(head, after=int(start[0]) if start else 0, limit=size + 1)
        page, token = self._pages.split(
            found,
            request,
            tenant=caller.tenant,
            size=size,
            place=lambda checkpoint: (event_named(checkpoint.checkpoint_id),),
            view=lambda checkpoint: codec.fill(session_pb2.Checkpoint(), checkpoint),
        )
        return session_pb2.ListCheckpointsResponse(checkpoints=page, next_page_token=token)

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: Context
    ) -> session_pb2.ForkSessionResponse:
        caller = caller_of(context)
        key = caller.request_key(request.request_id, family="fork_session", session_id=request.session_id)
        fork = ForkRequest(
            key=key,
            fingerprint=fingerprint(request, leaving_out=()),
            new_session_id=request.new_session_id,
            position=_at(request),
        )
        with _telling_cursors(caller.session_key(request.session_id)):
            session, head = await self._forks.fork(fork)
        return session_pb2.ForkSessionResponse(
            session=session_view(session, head),
            sequence=1,
            cursor=cursor.encode(StreamPosition(), key=session.key),
        )

    async def RestoreCheckpoint(
        self, request: session_pb2.RestoreCheckpointRequest, context: Context
    ) -> session_pb2.RestoreCheckpointResponse:
        caller = caller_of(context)
        if request.WhichOneof("at") is None:
            rules.refuse({"sequence": "or checkpoint_id is required"})
        with _telling_cursors(caller.session_key(request.session_id)):
            sequence = await self._checkpoints.restore(
                caller.session_key(request.session_id), _at(request), request=_restore_request(request, caller)
            )
        session, head = await self._sessions.get(caller.session_key(request.session_id))
        return session_pb2.RestoreCheckpointResponse(
            session=session_view(session, head),
            sequence=sequence,
            cursor=cursor.encode(StreamPosition(sequence=sequence - 1), key=session.key),
        )


@contextmanager
def _telling_cursors(key: SessionKey) -> Iterator[None]:
    """A place that was trimmed is refused as it is to a stream."""
    try:
        yield
    except CursorExpired as expired:
        raise with_cursor(expired, key) from None


def _restore_request(request: session_pb2.RestoreCheckpointRequest, caller: Caller) -> RestoreRequest | None:
    if not request.request_id:
        return None
    key = caller.request_key(request.request_id, family="restore_checkpoint", session_id=request.session_id)
    return RestoreRequest(key=key, fingerprint=fingerprint(request, leaving_out=()))


def _at(request: session_pb2.RestoreCheckpointRequest | session_pb2.ForkSessionRequest) -> LogPosition:
    match request.WhichOneof("at"):
        case "sequence":
            return LogPosition(sequence=request.sequence)
        case "checkpoint_id":
            if not request.checkpoint_id:
                rules.refuse({"checkpoint_id": "is empty"})
            return LogPosition(checkpoint_id=request.checkpoint_id)
        case None:
            return LogPosition()
