"""100,000 stored approvals, of which one of 250 waits for one person."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from pymongo import AsyncMongoClient

from tests.builders import NOON, a_session_key, an_approval
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.approvers import ANYBODY, Approvers
from turnkeeper.store.mongo.approval_matches import deciders_of
from turnkeeper.store.mongo.documents import SCHEMA, encode

STORED: Final = 100_000
GROUPS: Final = ("finance", "legal")
"""Of bert, for whom they wait."""
_AT_ONCE: Final = 10_000
_WHO: Final = (
    Approvers(groups=frozenset({"finance"})),
    Approvers(groups=frozenset({"legal"}), principals=frozenset({"bert"})),
    Approvers(principals=frozenset({"bert"})),
    ANYBODY,
)
"""Whom bert's approvals name. Each of them is one of a thousand."""
_OTHERS: Final = Approvers(groups=frozenset({"others"}))


async def store_approvals(client: AsyncMongoClient[dict[str, Any]], database: str) -> None:
    """Stores STORED approvals of the tenant `default`. Those that wait expire in an hour."""
    documents = _documents()
    for _ in range(STORED // _AT_ONCE):
        await client[database].approvals.insert_many([next(documents) for _ in range(_AT_ONCE)])
    count = await client[database].approvals.estimated_document_count()
    assert count >= STORED, count


def _documents() -> Iterator[dict[str, Any]]:
    """Yields approvals: one of 250 waits for bert, one of 10 for others; the rest is decided, also by bert's groups."""
    templates = [_document(an_approval(a_session_key(), approvers=who)) for who in (*_WHO, _OTHERS)]
    for number in range(STORED):
        is_mine, is_open = number % 250 == 0, number % 10 == 1
        template = templates[number // 250 % len(_WHO) if is_mine or not is_open else -1]
        approval_id = f"a{number:06}"
        yield {
            **template,
            "_id": {"tenant": template["tenant"], "id": approval_id},
            "id": approval_id,
            "tool_call_id": approval_id,
            "state": "PENDING" if is_mine or is_open else "APPROVED",
            "create_time": NOON + timedelta(seconds=number),
        }


def _document(approval: Approval) -> dict[str, Any]:
    return {**encode(approval), **deciders_of(approval), "schema": SCHEMA}
