"""Identity: every `_id` begins with the tenant, so that one tenant's ids never meet another's (promise I13)."""

from collections.abc import Sequence

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import RequestKey
from turnkeeper.store.mongo.client import Document


def of_session(key: SessionKey) -> Document:
    """A session and its head."""
    return {"tenant": key.tenant, "session_id": key.session_id}


def session_of(document: Document) -> SessionKey:
    """Returns the session that a document, or its `_id`, names."""
    return SessionKey(document["tenant"], document["session_id"])


def of_member(key: SessionKey, member_id: str) -> Document:
    """What belongs to a session: a turn, a tool call. Its id needs to be unique in the session only."""
    return {"tenant": key.tenant, "session_id": key.session_id, "id": member_id}


def of_approval(tenant: str, approval_id: str) -> Document:
    """Approvals are asked for without their session."""
    return {"tenant": tenant, "id": approval_id}


def of_agent(tenant: str, name: str, version: str) -> Document:
    return {"tenant": tenant, "name": name, "version": version}


def of_request(key: RequestKey) -> Document:
    return {
        "session_id": key.session_id,
        "tenant": key.tenant,
        "principal": key.principal,
        "family": key.family,
        "request_id": key.request_id,
    }


def where_sessions(sessions: Sequence[SessionKey]) -> Document:
    """The filter for the heads of these (tenant, session)."""
    return {
        "_id": {"$in": [of_session(key) for key in sessions]},
        "tenant": {"$in": sorted({key.tenant for key in sessions})},
    }


def where(key: Document) -> Document:
    """The filter for one document. It names the tenant twice: an index serves one, a reader trusts the other."""
    return {"_id": key, "tenant": key["tenant"]}
