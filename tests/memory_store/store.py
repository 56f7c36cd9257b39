"""The store in memory, assembled from its parts."""

from random import Random

from tests.memory_store.audits import Audits
from tests.memory_store.changesets import Changesets
from tests.memory_store.delegations import Delegations
from tests.memory_store.forks import Forks
from tests.memory_store.leases import Leases
from tests.memory_store.operations import Operations
from tests.memory_store.part import Enter
from tests.memory_store.replicas import Replicas
from tests.memory_store.sessions import Sessions
from tests.memory_store.state import MemoryDatabase
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.mongo.documents import SCHEMA


class MemoryStore(Sessions, Changesets, Leases, Forks, Replicas, Audits, Operations, Delegations):
    """Implements `Store` without a database: one replica's access to a MemoryDatabase. It has no `Retention`."""

    def __init__(
        self,
        database: MemoryDatabase,
        *,
        codec: EventCodec,
        enter: Enter,
        random: Random,
        replica: str = "",
        schema: int = SCHEMA,
    ) -> None:
        """`random` chooses among the turns that may be claimed. `replica` and `schema` as of MongoStore."""
        self._database = database
        self._codec = codec
        self._enter = enter
        self._random = random
        self._replica = replica
        self._process = database.new_process()
        self._schema = schema
