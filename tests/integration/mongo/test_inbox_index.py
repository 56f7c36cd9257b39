"""What waits for one person among 100,000 approvals: an index is scanned, nothing is sorted, few others are read."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import NOON, a_session_key, an_approval
from tests.integration.mongo.commands import Recorder, name_of
from tests.integration.mongo.conftest import Client
from turnkeeper.domain.approval import Approval, ApprovalState, Mandate
from turnkeeper.domain.approvers import ANYBODY, Approvers
from turnkeeper.domain.decider import Decider
from turnkeeper.store.filters import ApprovalFilter
from turnkeeper.store.mongo.approval_matches import deciders_of
from turnkeeper.store.mongo.documents import SCHEMA, encode
from turnkeeper.store.mongo.store import MongoStore

STORED = 100_000
AT_ONCE = 10_000
PAGE = 50
BERT = Mandate(person="bert", groups=frozenset({"finance", "legal"}))
CARL = Mandate(person="carl", groups=frozenset({"ops"}))
WHO = (
    Approvers(groups=frozenset({"finance"})),
    Approvers(groups=frozenset({"legal"}), principals=frozenset({"bert"})),
    Approvers(principals=frozenset({"bert"})),
    ANYBODY,
)
"""Whom bert's approvals name. Each of them is one of a thousand."""
OTHERS = Approvers(groups=frozenset({"others"}))


def _documents() -> Iterator[dict[str, Any]]:
    """Yields approvals: one of 250 waits for bert, one of 10 for others; the rest is decided, also by bert's groups."""
    templates = [_document(an_approval(a_session_key(), approvers=who)) for who in (*WHO, OTHERS)]
    for number in range(STORED):
        is_mine, is_open = number % 250 == 0, number % 10 == 1
        template = templates[number // 250 % len(WHO) if is_mine or not is_open else -1]
        approval_id = f"a{number:06}"
        yield {
            **template,
            "_id": {"tenant": "default", "id": approval_id},
            "id": approval_id,
            "tool_call_id": approval_id,
            "state": "PENDING" if is_mine or is_open else "APPROVED",
            "create_time": NOON + timedelta(seconds=number),
        }


def _document(approval: Approval) -> dict[str, Any]:
    return {**encode(approval), **deciders_of(approval), "schema": SCHEMA}


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
    documents = _documents()
    for _ in range(STORED // AT_ONCE):
        await client[database_name].approvals.insert_many([next(documents) for _ in range(AT_ONCE)])
    assert await client[database_name].approvals.estimated_document_count() >= STORED
    own, lent = Decider(person="bert", mandates=(BERT,)), Decider(person="bert", mandates=(BERT, CARL), through=True)
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
