# Generated from ../sessions.py by `make sync-client`. Do not edit.
"""Sessions: create, find, change, end, delete."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import field_mask_pb2

from turnkeeper_client.pb.v1 import session_pb2
from turnkeeper_client.requests import new_request_id
from turnkeeper_client.resume import ResumePolicy
from turnkeeper_client.sync.calls import call, every
from turnkeeper_client.sync.session import Session
from turnkeeper_client.sync.stubs import Stubs


class Sessions:
    """The caller's sessions."""

    def __init__(self, stubs: Stubs, *, policy: ResumePolicy) -> None:
        self._stubs = stubs
        self._policy = policy

    def create(
        self,
        agent: str,
        *,
        session_id: str = "",
        title: str = "",
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> Session:
        """Creates a session with an agent.

        With a `session_id` of your own the same call again gives the same session, and another one is refused. Without
        it the service chooses, and `request_id` makes a repeat harmless.
        """
        request = session_pb2.CreateSessionRequest(
            session_id=session_id,
            request_id=request_id or ("" if session_id else new_request_id()),
            agent=agent,
            title=title,
            labels=labels,
        )
        if metadata is not None:
            request.metadata.update(metadata)
        response = call(self._stubs.sessions.CreateSession, request)
        return Session(self._stubs, response.session.session_id, policy=self._policy)

    def get(self, session_id: str) -> session_pb2.Session:
        """Returns a session as it is now. Raises NotFound."""
        request = session_pb2.GetSessionRequest(session_id=session_id)
        return (call(self._stubs.sessions.GetSession, request)).session

    def list(
        self,
        *,
        states: Sequence[session_pb2.SessionState.ValueType] = (),
        agent: str = "",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
        oldest_first: bool = False,
    ) -> Iterator[session_pb2.Session]:
        """Yields the sessions that match every filter given."""
        request = session_pb2.ListSessionsRequest(
            states=states,
            agent=agent,
            owner=owner,
            labels=labels,
            order_by="create_time" if oldest_first else "create_time desc",
        )
        return every(self._stubs.sessions.ListSessions, request, lambda page: page.sessions)

    def end(self, session_id: str, *, reason: str = "") -> session_pb2.Session:
        """Ends a session. Repeating it changes nothing."""
        request = session_pb2.EndSessionRequest(session_id=session_id, reason=reason)
        return (call(self._stubs.sessions.EndSession, request)).session

    def update(
        self,
        session_id: str,
        *,
        title: str | None = None,
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        etag: str = "",
    ) -> session_pb2.Session:
        """Changes the fields given. With an `etag`, fails if the session has changed since it was read."""
        changed = session_pb2.Session(session_id=session_id, title=title or "", labels=labels)
        if metadata is not None:
            changed.metadata.update(metadata)
        given = {"title": title, "labels": labels, "metadata": metadata}
        mask = field_mask_pb2.FieldMask(paths=[name for name, value in given.items() if value is not None])
        request = session_pb2.UpdateSessionRequest(session=changed, update_mask=mask, etag=etag)
        return (call(self._stubs.sessions.UpdateSession, request)).session

    def delete(self, session_id: str, *, etag: str = "") -> session_pb2.Session:
        """Deletes a session: it is hidden, and removed for good later. Repeating it changes nothing."""
        request = session_pb2.DeleteSessionRequest(session_id=session_id, etag=etag)
        return (call(self._stubs.sessions.DeleteSession, request)).session

    def undelete(self, session_id: str) -> session_pb2.Session:
        """Undeletes a session that is not yet removed. Repeating it changes nothing."""
        request = session_pb2.UndeleteSessionRequest(session_id=session_id)
        return (call(self._stubs.sessions.UndeleteSession, request)).session
