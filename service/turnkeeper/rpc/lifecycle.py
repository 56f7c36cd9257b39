"""The RPCs of SessionService that change a session itself."""

from typing import TypeVar

from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.sessions import Decide, Sessions
from turnkeeper.pb.v1 import session_pb2
from turnkeeper.rpc import cursor, session_fields, validation
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.origins import operation_on
from turnkeeper.rpc.views import session_view
from turnkeeper.rpc.visible import VisibleSessions

CHANGEABLE = frozenset({"title", "labels", "metadata"})
"""The paths that an update mask may name."""

Response = TypeVar(
    "Response",
    session_pb2.UpdateSessionResponse,
    session_pb2.SuspendSessionResponse,
    session_pb2.ResumeSessionResponse,
    session_pb2.EndSessionResponse,
    session_pb2.DeleteSessionResponse,
    session_pb2.UndeleteSessionResponse,
)


class LifecycleVerbs:
    """A part of SessionService: update, suspend, resume, end, delete, undelete.

    A call that finds the session in the state that it asks for is OK, with sequence 0.
    """

    _sessions: Sessions
    _visible: VisibleSessions

    async def UpdateSession(
        self, request: session_pb2.UpdateSessionRequest, context: Context
    ) -> session_pb2.UpdateSessionResponse:
        change = _change_of(request)
        return await self._changed(
            context,
            request.session.session_id,
            lambda uow, _: session_rules.update(uow, change, etag=request.etag),
            session_pb2.UpdateSessionResponse(),
            action="update_session",
        )

    async def SuspendSession(
        self, request: session_pb2.SuspendSessionRequest, context: Context
    ) -> session_pb2.SuspendSessionResponse:
        caller = caller_of(context)
        return await self._changed(
            context,
            request.session_id,
            lambda uow, _: session_rules.suspend(uow, by=caller.principal),
            session_pb2.SuspendSessionResponse(),
            action="suspend_session",
        )

    async def ResumeSession(
        self, request: session_pb2.ResumeSessionRequest, context: Context
    ) -> session_pb2.ResumeSessionResponse:
        caller = caller_of(context)
        return await self._changed(
            context,
            request.session_id,
            lambda uow, _: session_rules.resume(uow, by=caller.principal),
            session_pb2.ResumeSessionResponse(),
            action="resume_session",
        )

    async def EndSession(
        self, request: session_pb2.EndSessionRequest, context: Context
    ) -> session_pb2.EndSessionResponse:
        caller = caller_of(context)
        return await self._changed(
            context,
            request.session_id,
            lambda uow, queued: session_rules.end(uow, queued, by=caller.principal, reason=request.reason),
            session_pb2.EndSessionResponse(),
            action="end_session",
        )

    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: Context
    ) -> session_pb2.DeleteSessionResponse:
        caller = caller_of(context)
        return await self._changed(
            context,
            request.session_id,
            lambda uow, queued: session_rules.delete(uow, queued, by=caller.principal, etag=request.etag),
            session_pb2.DeleteSessionResponse(),
            action="delete_session",
            deleted=True,
        )

    async def UndeleteSession(
        self, request: session_pb2.UndeleteSessionRequest, context: Context
    ) -> session_pb2.UndeleteSessionResponse:
        return await self._changed(
            context,
            request.session_id,
            lambda uow, _: session_rules.undelete(uow),
            session_pb2.UndeleteSessionResponse(),
            action="undelete_session",
            deleted=True,
        )

    async def _changed(
        self,
        context: Context,
        session_id: str,
        decide: Decide,
        response: Response,
        *,
        action: str,
        deleted: bool = False,
    ) -> Response:
        """Changes the session. Returns the response with the session as it is now and the cursor before the change.

        `deleted`: also of a deleted session. Raises SessionNotFound, and what `decide` raises.
        """
        session, _ = await self._visible.get(caller_of(context), session_id, deleted=deleted)
        key, operation = session.key, operation_on(session, context, action)
        sequence, (session, head) = await self._sessions.change(key, decide, operation=operation, deleted=deleted)
        response.session.CopyFrom(session_view(session, head))
        response.sequence = sequence
        response.cursor = cursor.before(sequence or head.last_seq + 1, key=key)
        return response


def _change_of(request: session_pb2.UpdateSessionRequest) -> session_rules.SessionChange:
    changed, paths = request.session, set(request.update_mask.paths)
    problems: dict[str, str] = {}
    if not paths or paths - CHANGEABLE:
        problems["update_mask"] = f"must name fields of {', '.join(sorted(CHANGEABLE))}"
    metadata_json = ""
    if changed.HasField("metadata"):
        metadata_json = session_fields.json_of(changed.metadata, field="session.metadata")
    if "labels" in paths and (problem := session_fields.labels_problem(changed.labels)):
        problems["session.labels"] = problem
    if "metadata" in paths and (problem := session_fields.metadata_problem(metadata_json)):
        problems["session.metadata"] = problem
    if problems:
        validation.refuse(problems)
    return session_rules.SessionChange(
        title=changed.title if "title" in paths else None,
        labels=dict(changed.labels) if "labels" in paths else None,
        metadata_json=metadata_json if "metadata" in paths else None,
    )
