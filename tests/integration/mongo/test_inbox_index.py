"""What waits for one person among 100,000 approvals: an index is scanned, nothing is sorted, few others are read."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.mongo.commands import Recorder, name_of
from tests.integration.mongo.conftest import Client
from tests.stored_approvals import GROUPS, store_approvals
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.decider import Decider, Mandate
from turnkeeper.store.filters import ApprovalFilter
from turnkeeper.store.mongo.store import MongoStore

PAGE = 50
BERT = Mandate(person="bert", groups=frozenset(GROUPS))
CARL = Mandate(person="carl", groups=frozenset({"ops"}))


def _stages(plan: Any) -> Iterator[dict[str, Any]]:
    """Yields each stage of a plan, the inner ones, too."""
    if isinstance(plan, dict):
        if "stage" in plan:
            yield plan
        for value in plan.values():
            yield from _stages(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from _stages(value)


@pytest.mark.timeout(240)
async def test_what_waits_for_one_person_is_found_by_its_index(
    store: MongoStore, client: Client, database_name: str, recorder: Recorder
) -> None:
    await store_approvals(client, database_name)
    own, lent = (
        Decider(person="bert", mandates=(BERT,)),
        Decider(person="bert", mandates=(BERT, CARL), through="portal"),
    )
    mine = [
        ApprovalFilter(decidable_by=decider, newest_first=newest) for decider in (own, lent) for newest in (False, True)
    ]
    for where in (*mine, ApprovalFilter(states=(ApprovalState.PENDING,))):
        after = None
        for _ in range(2):
            with recorder.recording() as commands:
                page = await store.approvals("default", where, limit=PAGE, after=after)
            assert len(page) == PAGE
            after = (page[-1].create_time, page[-1].id)
            (sent,) = [command for command in commands if name_of(command) == "aggregate"]
            again = {name: sent[name] for name in ("aggregate", "pipeline", "cursor")}
            plan = await client[database_name].command({"explain": again, "verbosity": "executionStats"})
            assert "stages" not in plan, "a stage beside the query"
            stages = {stage["stage"] for stage in _stages(plan["queryPlanner"]["winningPlan"])}
            assert "IXSCAN" in stages, stages
            assert not stages & {"SORT", "COLLSCAN"}, stages
            assert plan["executionStats"]["totalDocsExamined"] <= 2 * PAGE
