"""A store in memory whose reads may lag behind what was acknowledged, as those of a new primary do for a moment."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.turn import Turn
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Head, Snapshot


class LaggingStore(MemoryStore):
    """Once it lags, it shows no session, turn or agent but the snapshot of then, unless a read is linearizable."""

    def __init__(self) -> None:
        database = MemoryDatabase(now=lambda: datetime.now(UTC))
        super().__init__(database, codec=WireCodec(), enter=self._at_once, random=Random(1))
        self._lags = self._is_linearizable = False
        self.confirmed = 0
        """How many blocks were linearizable."""
        self._past: Snapshot | None = None

    async def lag(self, key: SessionKey) -> None:
        """Lets reads lag from now on. Snapshots of this session are as it is now."""
        self._past, self._lags = await super().snapshot(key), True

    async def snapshot(self, key: SessionKey, **given: Any) -> Snapshot | None:
        return self._past if self._hides else await super().snapshot(key, **given)

    async def session(self, key: SessionKey, *, deleted: bool = False) -> tuple[Session, Head] | None:
        return None if self._hides else await super().session(key, deleted=deleted)

    async def turn(self, key: SessionKey, turn_id: str) -> Turn | None:
        return None if self._hides else await super().turn(key, turn_id)

    async def agent(self, tenant: str, name: str, version: str) -> Agent | None:
        return None if self._hides else await super().agent(tenant, name, version)

    @asynccontextmanager
    async def linearizable(self) -> AsyncIterator[None]:
        self._is_linearizable = True
        self.confirmed += 1
        yield
        self._is_linearizable = False

    @property
    def _hides(self) -> bool:
        return self._lags and not self._is_linearizable

    async def _at_once(self, method: str) -> None:
        pass
