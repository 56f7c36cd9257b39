"""The implementations of the store, and which of them a test runs on."""

from collections.abc import Mapping

import pytest

from tests.memory_store.store import MemoryStore
from turnkeeper.store.mongo.store import MongoStore

IMPLEMENTATIONS: Mapping[str, type] = {"memory": MemoryStore, "mongo": MongoStore}


def having(role: type) -> pytest.MarkDecorator:
    """Runs a test on the implementations that have this role; without the mark a test runs on all of them.

    An implementation has a role if it has all methods of the role's protocol. Raises AssertionError if none has it:
    the test would be skipped.
    """
    methods = [name for name in vars(role) if not name.startswith("_")]
    names = [name for name, kind in IMPLEMENTATIONS.items() if all(hasattr(kind, method) for method in methods)]
    assert names, f"no implementation has the role {role.__name__}"
    return pytest.mark.parametrize("implementation", names, indirect=True)
