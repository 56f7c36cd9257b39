"""The model test's store keeps the contract: the store's own suite runs on it where it has the methods."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tests.contracts import test_store_changesets, test_store_claims, test_store_heads, test_store_races
from tests.contracts.stores import TextCodec
from tests.unit.engine.memory_log import MemoryLog
from turnkeeper.store.contract import Store

Test = Callable[..., Awaitable[None]]
NOT_HERE = {
    "test_any_of_the_32_due_longest_may_be_claimed_and_no_other": "it claims in order",
    "test_an_owner_sees_what_disturbs_its_turns": "the machine reads the head instead",
    "test_an_event_too_large_is_a_defect": "no event of the machine is large",
    "test_documents_of_another_session_are_a_defect": "the database's store refuses those",
    "test_i1_a_reader_sees_every_event_once_in_order_under_four_writers": "nothing happens at once here",
    "test_i6_i7_an_approval_leaves_pending_once_at_its_expiry": "nothing happens at once here",
}
SUITES = (test_store_changesets, test_store_claims, test_store_heads, test_store_races)


def cases() -> Iterator[Any]:
    """Every test of the suites, with every set of its own parameters."""
    for name, test in (each for suite in SUITES for each in vars(suite).items()):
        if not name.startswith("test_") or name in NOT_HERE:
            continue
        sets: list[dict[str, Any]] = [{}]
        for mark in getattr(test, "pytestmark", ()):
            names, values = mark.args
            names = [names] if isinstance(names, str) else names
            rows = [value if len(names) > 1 else (value,) for value in values]
            sets = [given | dict(zip(names, row, strict=True)) for given in sets for row in rows]
        for number, given in enumerate(sets):
            yield pytest.param(test, given, id=f"{name}-{number}")


class Awaited:
    """A MemoryLog whose answers are awaited."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def answer(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._log, name)(*args, **kwargs)

        return answer


@pytest.mark.parametrize(("test", "given"), list(cases()))
async def test_the_models_store_keeps_the_contract(test: Test, given: dict[str, Any]) -> None:
    store = cast(Store, Awaited(MemoryLog(TextCodec(), now=lambda: datetime.now(UTC))))

    async def new_store() -> Store:
        return store

    parts = {"store": store, "new_store": new_store}
    wanted = inspect.signature(test).parameters
    await test(**{name: part for name, part in parts.items() if name in wanted}, **given)
