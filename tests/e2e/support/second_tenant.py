"""A second tenant beside that of the tests: each of their sessions has a twin of the same id and other content there.

So whatever a test sees of a twin, or changes in it, was found by a filter or the key of a cache without the tenant.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import Message
from pymongo import AsyncMongoClient

from tests import harness
from tests.calls import bearer
from tests.e2e.support.twins import COLLECTIONS, Document, Twins
from tests.identities import row, settings_of, token_of
from tests.metadata_channel import MetadataChannel
from turnkeeper import ids
from turnkeeper.identity.caller import DEFAULT_CALLER, AccessRole
from turnkeeper.pb.v1 import session_pb2

TENANT: Final = "another"
"""Its documents are before those of the tenant `default`, in indexes and in the order of insertion."""
DECIDER: Final = "decider"
"""Decides the approvals of both tenants' callers: who caused a call cannot."""
NAMING: Final = ("session_id", "new_session_id")
"""The fields of requests that name a session."""
SESSION_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class SecondTenant:
    """The callers of both tenants, and the twins. A caller has the same name in each."""

    def __init__(self, folder: Path, twins: Twins) -> None:
        name = DEFAULT_CALLER.principal
        tenants = (harness.TENANT, TENANT)
        roles = [role.value for role in AccessRole]
        names = (name, DECIDER)
        self.settings = settings_of(
            folder, *(row(of, tenant=tenant, roles=roles) for tenant in tenants for of in names)
        )
        self.token, self._twins_token = (token_of(f"{tenant}/{name}") for tenant in tenants)
        self._decider_tokens = [token_of(f"{tenant}/{DECIDER}") for tenant in tenants]
        self._twins = twins
        self._databases: dict[str, tuple[str, str]] = {}
        """By the address of a server."""

    @contextlib.contextmanager
    def served(self, address: str, mongo_uri: str, database: str) -> Iterator[None]:
        """Takes note of a server, and of its database, for the block."""
        self._databases[address] = mongo_uri, database
        try:
            yield
        finally:
            self._databases.pop(address, None)
            self._twins.server_ended(mongo_uri)

    def channels(self, channel: Any, address: str) -> tuple[Any, Any] | None:
        """Returns the channel for each tenant's caller. A session has its twin before a call of the first names it."""
        if address not in self._databases:
            return None

        def prepare(request: Message) -> None:
            for session_id in _named(request):
                self._twins.store(*self._databases[address], session_id)

        deciders = [{"DecideApproval": bearer(token)} for token in self._decider_tokens]
        first = MetadataChannel(channel, bearer(self.token), prepare=prepare, instead=deciders[0])
        return first, MetadataChannel(channel, bearer(self._twins_token), instead=deciders[1])

    async def check(self, mongo_uri: str, database: str) -> None:
        """Asserts that the tenant has the documents of the twins and no others, but for the calls of its own caller.

        Servers trim the logs of all tenants: the events of a twin's log do not count once that is marked as trimmed.
        """
        own: Document = {"tenant": TENANT, "kind": {"$ne": "session_updated"}}
        async with AsyncMongoClient[Document](mongo_uri) as client:
            heads = client[database]["heads"].find({"tenant": TENANT, "compacted_to": {"$gt": 0}})
            trimmed = [head["session_id"] async for head in heads]
            expected = self._twins.expected(database, trimmed=trimmed)
            untrimmed = {"events": own | {"session_id": {"$nin": trimmed}}}
            counts = Counter[str]()
            for name in COLLECTIONS:
                counts[name] = await client[database][name].count_documents(untrimmed.get(name, own))
        assert counts == expected, f"of the second tenant there are {counts}, not {expected}"


def _named(request: Message) -> list[str]:
    """Returns the ids of sessions that a request names, or that the server derives from it, and that may be one."""
    fields: Mapping[str, Any] = {field.name: value for field, value in request.ListFields()}
    session = fields.get("session")
    names = [fields.get(name, "") for name in NAMING] + [session.session_id if session is not None else ""]
    if isinstance(request, session_pb2.CreateSessionRequest) and not request.session_id:
        names.append(ids.derived(harness.TENANT, DEFAULT_CALLER.principal, "create_session", request.request_id))
    return [name for name in names if SESSION_ID.fullmatch(name)]
