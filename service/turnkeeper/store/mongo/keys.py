"""The `_id` of each kind of document. Each holds the tenant, so that equal ids of two tenants differ (promise I13)."""

from collections.abc import Collection, Sequence

from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnKey
from turnkeeper.store.changeset import RequestKey
from turnkeeper.store.mongo.client import Document


def of_session(key: SessionKey) -> Document:
    """Returns the `_id` of a session and of its head."""
    return {"tenant": key.tenant, "session_id": key.session_id}


def session_of(document: Document) -> SessionKey:
    """Returns the session that a document or an `_id` belongs to."""
    return SessionKey(document["tenant"], document["session_id"])


def of_member(key: SessionKey, member_id: str) -> Document:
    """Returns the `_id` of a turn or a tool call. Its id must be unique within the session only."""
    return {"tenant": key.tenant, "session_id": key.session_id, "id": member_id}


def turn_of(key: Document) -> TurnKey:
    """Returns the turn that has this `_id`."""
    return TurnKey(session_of(key), key["id"])


def of_approval(tenant: str, approval_id: str) -> Document:
    """Returns the `_id` of an approval, without its session: callers name approvals by id alone."""
    return {"tenant": tenant, "id": approval_id}


def of_agent(tenant: str, name: str, version: str) -> Document:
    """Returns the `_id` of a version of an agent."""
    return {"tenant": tenant, "name": name, "version": version}


def of_freeze(tenant: str, agent: str) -> Document:
    """Returns the `_id` of a freeze of admission."""
    return {"tenant": tenant, "agent": agent}


def of_delegation(tenant: str, person: str, delegate: str) -> Document:
    """Returns the `_id` of a delegation of authority."""
    return {"tenant": tenant, "person": person, "delegate": delegate}


def of_denial(tenant: str, pattern: str) -> Document:
    """Returns the `_id` of a denial of tools."""
    return {"tenant": tenant, "pattern": pattern}


def of_request(key: RequestKey) -> Document:
    """Returns the `_id` of a request's record."""
    return {
        "session_id": key.session_id,
        "tenant": key.tenant,
        "principal": key.principal,
        "family": key.family,
        "request_id": key.request_id,
    }


def where_sessions(sessions: Sequence[SessionKey]) -> Document:
    """Returns the filter for the heads of these sessions."""
    return {
        "_id": {"$in": [of_session(key) for key in sessions]},
        "tenant": {"$in": sorted({key.tenant for key in sessions})},
    }


def where_turns(turns: Collection[TurnKey]) -> Document:
    """Returns the filter for the documents of these turns."""
    return {
        "_id": {"$in": [of_member(*turn) for turn in turns]},
        "tenant": {"$in": sorted({turn.session.tenant for turn in turns})},
    }


def where_of_turns(turns: Collection[TurnKey]) -> Document:
    """Returns the filter for tool calls or approvals of these turns, and possibly of others.

    Three lists of values: an index finds them, while the database would plan each turn's condition by itself.
    """
    return {
        "tenant": {"$in": sorted({turn.session.tenant for turn in turns})},
        "session_id": {"$in": sorted({turn.session.session_id for turn in turns})},
        "turn_id": {"$in": sorted({turn.turn_id for turn in turns})},
    }


def where(key: Document) -> Document:
    """Returns the filter for one document.

    It names the tenant beside the `_id` too: each command can be checked for its tenant by that one field.
    """
    return {"_id": key, "tenant": key["tenant"]}
