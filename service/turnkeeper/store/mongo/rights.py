"""The rights that the service needs of its user: the least ones, and the check at the start that the user has them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from turnkeeper.store.mongo.client import Connection, Document
from turnkeeper.store.mongo.indexes import UnfitDatabase

ROLE: Final = "turnkeeper"
"""The name of the role in the shipped document."""
_EVERY: Final = ""
"""In a privilege: every database, or every collection."""
_NAMED: Final = 4
"""Collections that the sentence about missing rights names, at most."""

_OF_DATABASE: Final = ("changeStream", "find", "listCollections")
_CREATED: Final = ("createCollection", "createIndex")
_CREATED_WITHOUT_INDEX: Final = ("createCollection",)
_OF_COLLECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "agents": (*_CREATED_WITHOUT_INDEX, "insert"),
    "approvals": (*_CREATED, "insert", "remove", "update"),
    "audit_chains": (*_CREATED_WITHOUT_INDEX, "insert", "update"),
    "audit_records": (*_CREATED, "insert", "update"),
    "audit_seals": (*_CREATED, "insert"),
    "delegations": (*_CREATED, "insert", "remove", "update"),
    "denials": (*_CREATED, "insert", "remove", "update"),
    "events": (*_CREATED, "insert", "remove"),
    "freezes": (*_CREATED_WITHOUT_INDEX, "insert", "remove", "update"),
    "heads": (*_CREATED, "insert", "remove", "update"),
    "partials": (*_CREATED, "insert", "remove"),
    "replicas": (*_CREATED, "insert", "remove", "update"),
    "requests": (*_CREATED, "insert", "remove"),
    "secrets": (*_CREATED_WITHOUT_INDEX, "insert"),
    "sessions": (*_CREATED, "insert", "remove", "update"),
    "tool_calls": (*_CREATED, "insert", "remove", "update"),
    "turns": (*_CREATED, "insert", "remove", "update"),
}
"""What is written of each collection. An event is never changed, a record of the audit trail never removed."""


def role(database: str) -> Document:
    """Returns the command that creates the role with the least rights on a database."""
    return {
        "createRole": ROLE,
        "privileges": [
            {"resource": {"db": database, "collection": collection}, "actions": list(actions)}
            for collection, actions in _needed()
        ],
        "roles": [],
    }


async def check(connection: Connection) -> None:
    """Raises UnfitDatabase if the user lacks a right, and names it. Does nothing if the database knows no users."""
    reply = await connection.client.admin.command({"connectionStatus": 1, "showPrivileges": True})
    known = reply["authInfo"]
    if not known["authenticatedUsers"]:
        return
    database = connection.database.name
    missing = {
        collection: lacking
        for collection, actions in _needed()
        if (lacking := sorted(set(actions) - _held(known["authenticatedUserPrivileges"], database, collection)))
    }
    if missing:
        raise UnfitDatabase(
            f"the user of MONGODB_URI lacks rights on the database {database}: {_listed(missing)}; "
            "grant them, or the role readWrite there"
        )


def _needed() -> Iterator[tuple[str, Sequence[str]]]:
    """Yields each collection, or _EVERY, with the actions that are needed there."""
    yield _EVERY, _OF_DATABASE
    yield from _OF_COLLECTIONS.items()


def _held(privileges: Iterable[Mapping[str, Any]], database: str, collection: str) -> set[str]:
    """Returns the actions that the privileges allow on a collection; for _EVERY, on all of the database."""
    return {
        action
        for privilege in privileges
        if _covers(privilege["resource"], database, collection)
        for action in privilege["actions"]
    }


def _covers(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in (_EVERY, database) and resource.get("collection") in (_EVERY, collection)


def _listed(missing: Mapping[str, Sequence[str]]) -> str:
    named = [
        f"{', '.join(actions)} on {collection or 'all collections'}"
        for collection, actions in list(missing.items())[:_NAMED]
    ]
    more = [f"others on {len(missing) - _NAMED} more collections"] if len(missing) > _NAMED else []
    return "; ".join([*named, *more])
