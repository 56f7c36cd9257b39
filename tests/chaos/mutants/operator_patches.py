"""The broken versions of what operators do in others' sessions."""

import contextlib
from dataclasses import replace
from typing import Any

from turnkeeper.domain.audit import Origin
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.identity.caller import Caller
from turnkeeper.rpc import origins
from turnkeeper.store.changeset import Changeset, CommitResult, Committed
from turnkeeper.store.mongo.store import MongoStore

_commit = MongoStore.commit
_origin = origins.origin


def record_beside_its_effect() -> None:
    """Stores the audit record after the effect, in a write of its own: the effect is there without it."""

    async def commit(self: MongoStore, changeset: Changeset) -> CommitResult:
        result = await _commit(self, replace(changeset, audit=()))
        if changeset.audit and isinstance(result, Committed):
            with contextlib.suppress(ServiceUnavailable):
                await self.record(*changeset.audit)
        return result

    MongoStore.commit = commit  # type: ignore[method-assign,assignment]


def operators_name_lost() -> None:
    """Puts on record that an operator has done it, and not which one."""

    def origin(*arguments: Any, **options: Any) -> Origin:
        return replace(_origin(*arguments, **options), principal="")

    origins.origin = origin


def operator_of_any_tenant() -> None:
    """Lets an operator act in each tenant that a call names."""

    def in_tenant(self: Caller, tenant: str) -> Caller:
        return replace(self, tenant=tenant or self.tenant)

    Caller.in_tenant = in_tenant  # type: ignore[method-assign,assignment]


OPERATOR_PATCHES = (record_beside_its_effect, operators_name_lost, operator_of_any_tenant)
