"""A page of the log is read without a call of a function for each of its events."""

from tests.builders import an_event
from tests.call_counts import counting_calls
from tests.contracts.stores import a_changeset, begin, committed, head_of
from turnkeeper.store.mongo.store import MongoStore


async def test_a_page_of_many_events_calls_as_few_functions_as_one_of_a_few(store: MongoStore) -> None:
    key = await begin(store)
    await committed(store.commit(a_changeset(await head_of(store, key), *(an_event() for _ in range(300)))))
    costs: list[int] = []
    for limit in (10, 300):
        with counting_calls() as counts:
            events = await store.events(key, after=0, limit=limit)
        assert len(events) == limit
        costs.append(counts.total())
    assert costs[1] < costs[0] + 100, costs
