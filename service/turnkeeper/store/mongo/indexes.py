"""The indexes, created at the start, and the checks that the database can keep the service's promises."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import pymongo
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from turnkeeper.store.mongo.approval_matches import DECIDERS
from turnkeeper.store.mongo.client import MAJORITY, Connection

LONGEST_TRANSACTION_S: Final = 15
"""Documents that a killed replica's open transaction wrote stay locked this long at most."""

DUE: Final = "due_of_tenants"
"""The index of the heads with a wake-up: of each tenant, ordered by its time."""

REPLICAS_KEPT_S: Final = 7 * 24 * 3600
"""Documents of replicas are removed this long after their last heartbeat or announcement."""

_PENDING: Final = {"state": "PENDING"}
_ANY_TIME: Final = {"$gt": datetime.fromtimestamp(0, UTC)}

INDEXES: Final[Mapping[str, tuple[IndexModel, ...]]] = {
    "sessions": (
        IndexModel([("tenant", ASCENDING), ("create_time", DESCENDING), ("id", DESCENDING)], name="page"),
        IndexModel(
            [("tenant", ASCENDING), ("owner", ASCENDING), ("create_time", DESCENDING), ("id", DESCENDING)],
            name="page_of_owner",
        ),
        IndexModel([("tenant", ASCENDING), ("labels", ASCENDING)], name="labels"),
    ),
    "heads": (
        # One index for two queries: which leases lapsed; which turns have neither a lease nor a wake-up.
        IndexModel(
            [("lease_until", ASCENDING), ("wake_at", ASCENDING), ("_id", ASCENDING)],
            name="lease",
            partialFilterExpression={"active_turn": {"$gt": ""}},
        ),
        # Which turns are due. Suspended sessions and turns of newer schemas are in ranges of their own.
        IndexModel(
            [(name, ASCENDING) for name in ("suspended", "needs", "log_needs", "tenant", "wake_at", "agent")],
            name=DUE,
            partialFilterExpression={"active_turn": {"$gt": ""}, "wake_at": _ANY_TIME},
        ),
        # Queues of sessions without an active turn: there should be none.
        IndexModel(
            [("queue.0", ASCENDING)],
            name="stranded",
            partialFilterExpression={"active_turn": "", "queue.0": {"$exists": True}},
        ),
        # Which logs are due for trimming; which sessions are deleted.
        IndexModel([("trim_at", ASCENDING)], name="trim"),
        IndexModel(
            [("deleted_at", ASCENDING)],
            name="deleted",
            partialFilterExpression={"deleted_at": _ANY_TIME},
        ),
        # Unfinished forks, by the time when they were begun.
        IndexModel(
            [("update_time", ASCENDING)], name="forking", partialFilterExpression={"forking": {"$exists": True}}
        ),
    ),
    "events": (
        IndexModel(
            [("tenant", ASCENDING), ("session_id", ASCENDING), ("seq", ASCENDING)], name="sequence", unique=True
        ),
        # A conversation is read by the kinds of its events.
        IndexModel(
            [("tenant", ASCENDING), ("session_id", ASCENDING), ("kind", ASCENDING), ("seq", ASCENDING)], name="kind"
        ),
    ),
    "turns": (
        IndexModel([("tenant", ASCENDING), ("session_id", ASCENDING), ("first_sequence", DESCENDING)], name="page"),
    ),
    "tool_calls": (
        IndexModel([("tenant", ASCENDING), ("session_id", ASCENDING), ("turn_id", ASCENDING)], name="turn"),
    ),
    "approvals": (
        IndexModel(
            [("tenant", ASCENDING), ("session_id", ASCENDING), ("tool_call_id", ASCENDING), ("round", ASCENDING)],
            name="round",
            unique=True,
        ),
        IndexModel([("tenant", ASCENDING), ("create_time", ASCENDING), ("id", ASCENDING)], name="page"),
        IndexModel(
            [("tenant", ASCENDING), ("requester", ASCENDING), ("create_time", ASCENDING), ("id", ASCENDING)],
            name="page_of_requester",
        ),
        IndexModel(
            [("tenant", ASCENDING), ("session_id", ASCENDING), ("turn_id", ASCENDING)],
            name="pending",
            partialFilterExpression=_PENDING,
        ),
        IndexModel([("state", ASCENDING), ("expire_time", ASCENDING)], name="expiry", partialFilterExpression=_PENDING),
        # What waits for a decision: all, and what one of its deciders may decide.
        IndexModel(
            [("tenant", ASCENDING), ("create_time", ASCENDING), ("id", ASCENDING)],
            name="open",
            partialFilterExpression=_PENDING,
        ),
        IndexModel(
            [("tenant", ASCENDING), (DECIDERS, ASCENDING), ("create_time", ASCENDING), ("id", ASCENDING)],
            name="inbox",
            partialFilterExpression=_PENDING,
        ),
        IndexModel(
            [("state", ASCENDING), ("expiring_time", ASCENDING)],
            name="expiring",
            partialFilterExpression={**_PENDING, "expiring_time": _ANY_TIME},
        ),
    ),
    "requests": (
        IndexModel([("expire_at", ASCENDING)], name="expiry", expireAfterSeconds=0),
        IndexModel([("tenant", ASCENDING), ("session_id", ASCENDING)], name="session"),
    ),
    "partials": (
        IndexModel(
            [(name, ASCENDING) for name in ("tenant", "session_id", "message_id", "attempt", "offset")],
            name="place",
            unique=True,
        ),
        IndexModel([("expire_at", ASCENDING)], name="expiry", expireAfterSeconds=0),
    ),
    "audit_records": (
        # Which records have no seal yet: there are few, and only these are in the index.
        IndexModel([("tenant", ASCENDING)], name="unsealed", partialFilterExpression={"seal": 0}),
        IndexModel([("tenant", ASCENDING), ("seal", ASCENDING)], name="seal"),
        IndexModel([("tenant", ASCENDING), ("session_id", ASCENDING), ("seq", ASCENDING)], name="session"),
    ),
    "audit_seals": (IndexModel([("tenant", ASCENDING), ("number", ASCENDING)], name="number"),),
    "audit_chains": (),
    "freezes": (),
    "delegations": (
        # Whose authority a delegate has; what a person has delegated. The database removes those that are over.
        IndexModel([("tenant", ASCENDING), ("delegate", ASCENDING)], name="delegate"),
        IndexModel([("tenant", ASCENDING), ("person", ASCENDING), ("delegate", ASCENDING)], name="person"),
        IndexModel([("until", ASCENDING)], name="expiry", expireAfterSeconds=0),
    ),
    "denials": (IndexModel([("until", ASCENDING)], name="ended", expireAfterSeconds=0),),
    "agents": (),
    "secrets": (),
    "replicas": (IndexModel([("at", ASCENDING)], name="forgotten", expireAfterSeconds=REPLICAS_KEPT_S),),
}

ROUTER: Final = "isdbgrid"
NOT_ALLOWED: Final = (13, 8000)
"""MongoDB's error codes of a user that lacks a right: Unauthorized, and Atlas's own."""

logger = logging.getLogger(__name__)


class UnfitDatabase(Exception):
    """The database cannot keep the service's promises. The message names what to change."""


async def prepare(connection: Connection) -> None:
    """Creates the collections and indexes. Raises UnfitDatabase if the database cannot keep the service's promises."""
    await check_replicated(connection)
    _check_concerns(connection)
    await _check_transaction_lifetime(connection)
    present = set(await connection.database.list_collection_names())
    for name, models in INDEXES.items():
        if name not in present:
            await _create(connection, name)
        if models:
            await _index(connection, name, models)


def why_unprepared(error: PyMongoError, connection: Connection) -> str:
    """Returns what `prepare` failed at, and what to do. The error's own text is left out: it may quote documents."""
    name = connection.database.name
    if isinstance(error, OperationFailure) and error.code in NOT_ALLOWED:
        return (
            f"MONGODB_URI names no user, or one without rights on the database {name}: write USER:PASSWORD@ before the "
            "hosts, and give the user the role readWrite there"
        )
    if isinstance(error, ServerSelectionTimeoutError):
        return (
            "the hosts of MONGODB_URI answer, but their replica set's primary was not reached from this machine within "
            f"{connection.operation.total_seconds():g} s: its members must be named by addresses that are valid here, "
            "and --operation-time must be long enough"
        )
    if error.timeout:
        return (
            "the database answers, but a write was not acknowledged by a majority of its members within "
            f"{connection.operation.total_seconds():g} s: check that they are up and not behind, or raise "
            "--operation-time"
        )
    code = f", code {error.code}" if isinstance(error, OperationFailure) else ""
    return f"the database {name} cannot be prepared ({type(error).__name__}{code}): see the log of the database"


async def is_sharded(connection: Connection) -> bool:
    """Returns True if the connection is to a router of a sharded cluster."""
    return bool((await connection.client.admin.command("hello")).get("msg") == ROUTER)


async def check_replicated(connection: Connection) -> None:
    """Raises UnfitDatabase for a single server without a replica set."""
    hello = await connection.client.admin.command("hello")
    if "setName" not in hello and hello.get("msg") != ROUTER:
        raise UnfitDatabase("the database is a single server: transactions need a replica set; start it with --replSet")


def _check_concerns(connection: Connection) -> None:
    """Raises UnfitDatabase unless the driver will send the concerns that the service relies on."""
    concern = connection.events.write_concern.document
    if concern != MAJORITY.document or connection.events.read_concern.level != "majority":
        raise UnfitDatabase(f"writes must wait for a majority and its journal, but would be sent with {concern}")


async def _check_transaction_lifetime(connection: Connection) -> None:
    """Logs a warning if the database keeps abandoned transactions open for longer than LONGEST_TRANSACTION_S."""
    name = "transactionLifetimeLimitSeconds"
    try:
        limit = (await connection.client.admin.command({"getParameter": 1, name: 1}))[name]
    except OperationFailure:
        logger.info("the database does not reveal its %s: make sure that it is at most %d", name, LONGEST_TRANSACTION_S)
        return
    if limit > LONGEST_TRANSACTION_S:
        logger.warning(
            "%s is %d: the sessions of a killed replica can stay locked that many seconds; set it to %d",
            *(name, limit, LONGEST_TRANSACTION_S),
        )


async def _create(connection: Connection, name: str) -> None:
    """Creates a collection ahead of its use: a transaction that creates one conflicts with every other."""
    exists = 48
    try:
        await connection.database.create_collection(name, check_exists=False, write_concern=MAJORITY)
    except OperationFailure as error:
        if error.code != exists:
            raise


async def _index(connection: Connection, name: str, models: tuple[IndexModel, ...]) -> None:
    """Creates a collection's indexes. Raises UnfitDatabase if one of another definition has the name."""
    different = (85, 86)
    try:
        with pymongo.timeout(None):  # a build that is cut off starts over: on a large collection it would never finish
            await connection.database[name].create_indexes(list(models))
    except OperationFailure as error:
        if error.code not in different:
            raise
        raise UnfitDatabase(
            f"the collection {name} has an index of another version: drop that index, then start again"
        ) from error
