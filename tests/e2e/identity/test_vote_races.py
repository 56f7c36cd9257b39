"""Races of all who try to decide, the expiry and a cancellation end in one outcome, by those who may."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, timedelta
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.voters import REPLICAS, Served, delegate, serving_voters
from tests.status_details import details_of
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2, chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEFT = {"approval_decided", "approval_expired", "approval_withdrawn"}
RACES = 48
"""Approvals that are raced. `make chaos-approvals` races 1,000, while servers are killed."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Served]:
    async with serving_voters(mongo_uri, module_database, tmp_path_factory.mktemp("votes")) as served:
        yield served


async def result_of(call: Callable[[], Awaitable[Any]]) -> str:
    """Returns OK, or the reason of the call's error. Calls again as it is told to while the database is unavailable.

    A replica whose heartbeat is late on a busy machine loses its server sessions to the others.
    """
    while True:
        try:
            await call()
        except aio.AioRpcError as error:
            details = details_of(error)
            if details.reason != "SERVICE_UNAVAILABLE" or details.retry_after is None:
                return details.reason
            await asyncio.sleep(details.retry_after.total_seconds())
        else:
            return "OK"


async def expires(served: Served, approval: approval_pb2.Approval, when: timedelta) -> None:
    """Sets the approval to expire at this time from now, by the database's clock."""
    milliseconds = round(when / timedelta(milliseconds=1))
    async with AsyncMongoClient[dict[str, object]](served.mongo_uri) as client:
        await client[served.database]["approvals"].update_one(
            {"tenant": "acme", "_id.id": approval.approval_id},
            [{"$set": {"expire_time": {"$add": ["$$NOW", milliseconds]}}}],
        )


async def race(served: Served, number: int, chance: random.Random) -> list[str]:
    """Lets all who may and may not decide, the expiry and a cancellation meet in one approval.

    Returns the results of those who may never decide.
    """
    label = f"race-{number}"
    approval = await served.pending(label)
    rejects, cancels, lapses = chance.random() < 0.15, chance.random() < 0.2, chance.random() < 0.4
    if lapses:
        await expires(served, approval, timedelta(milliseconds=chance.randrange(20, 400)))
    of_portal = {"turnkeeper_on_behalf_of": "bob"}
    who: list[tuple[str, dict[str, str]]] = [("bob", {}), ("eve", {}), ("sue", {}), ("portal", of_portal)]
    not_who: list[tuple[str, dict[str, str]]] = [
        ("anna", {}),
        ("vic", {}),
        ("portal", {"turnkeeper_on_behalf_of": "anna"}),
    ]

    async def decide(name: str, metadata: dict[str, str]) -> str:
        stubs = await served.as_(name, chance.randrange(REPLICAS), **metadata)
        await asyncio.sleep(chance.random() * 0.3)
        return await result_of(partial(harness.decide, stubs, approval, approve=not (rejects and name == "eve")))

    async def cancel() -> str:
        stubs = await served.as_("anna", chance.randrange(REPLICAS))
        await asyncio.sleep(chance.random() * 0.3 * (number % 2))  # on a slow machine some must win, too
        request = chat_pb2.CancelTurnRequest(session_id=label, turn_id=approval.turn_id)
        return await result_of(partial(stubs.chat.CancelTurn, request))

    calls = [decide(*caller) for caller in (*who, *not_who)] + ([cancel()] if cancels else [])
    results = await asyncio.gather(*calls)
    await harness.wait_for_turn(await served.as_("anna"), label, approval.turn_id)
    return results[len(who) : len(who) + len(not_who)]


async def test_races_of_all_who_try_end_in_one_outcome_by_those_who_may(
    served: Served, tool_control: ToolControl
) -> None:
    await delegate(await served.as_("eve"), "sue")
    await delegate(await served.as_("anna"), "vic")
    chance = random.Random(7)
    numbers = list(range(RACES))
    refused_results: Counter[str] = Counter()
    while numbers:
        together, numbers = numbers[:12], numbers[12:]
        for results in await asyncio.gather(*(race(served, number, chance) for number in together)):
            refused_results.update(results)
    assert set(refused_results) <= {"PERMISSION_DENIED", "APPROVAL_ALREADY_PROCESSED", "APPROVAL_EXPIRED"}
    await check(served.mongo_uri, served.database)
    async with AsyncMongoClient[dict[str, Any]](served.mongo_uri, tz_aware=True) as client:
        approvals = await client[served.database]["approvals"].find({"tenant": "acme"}).to_list()
    records = await served.records(action="decide_approval")
    outcomes: Counter[str] = Counter()
    for approval in approvals:
        recorded = [record["details"] for record in records if record["session_id"] == approval["session_id"]]
        outcomes[await outcome(served, tool_control, approval, recorded)] += 1
    assert outcomes.total() == RACES
    assert outcomes["APPROVED by two"] >= RACES / 4, outcomes
    assert outcomes["EXPIRED"] >= 2, outcomes
    assert {"REJECTED", "WITHDRAWN"} <= outcomes.keys(), outcomes


async def outcome(
    served: Served, tool_control: ToolControl, stored: dict[str, Any], recorded: list[dict[str, str]]
) -> str:
    """Checks votes, events, audit trail, expiry and effects of a raced approval against each other."""
    label = stored["session_id"]
    events = await served.events(label, "approval_voted", "turn_cancelled", *LEFT)
    cancelled = "turn_cancelled" in harness.kinds(events)
    (left,) = [event for event in events if event.WhichOneof("payload") in LEFT]
    votes = [event for event in events if event.WhichOneof("payload") == "approval_voted"]
    details = [detail for detail in recorded if "votes" in detail]  # not those that came too late
    named = sorted((vote.approval_voted.person, vote.approval_voted.authority) for vote in votes)
    assert named == sorted((detail["decided_by"], detail.get("authority", detail["decided_by"])) for detail in details)
    people = {name for vote in votes for name in (vote.approval_voted.person, vote.approval_voted.authority)}
    assert people <= {"bob", "eve", "sue"}
    assert all(authority in ("bob", "eve") for _, authority in named)
    if stored["state"] in ("APPROVED", "REJECTED"):
        assert stored["decide_time"] < stored["expire_time"]
    if stored["state"] == "EXPIRED":
        assert left.create_time.ToDatetime(tzinfo=UTC) >= stored["expire_time"] - timedelta(milliseconds=2)
    approving = {vote["authority"] for vote in stored["votes"] if vote["decision"] == "APPROVE"}
    effects = len(tool_control.effects(label))
    assert effects == int(stored["state"] == "APPROVED") or (effects == 0 and cancelled)
    if stored["state"] == "APPROVED":
        assert len(approving) == 2
        return "APPROVED by two"
    assert len(approving) < 2 or stored["state"] == "REJECTED"
    return str(stored["state"])
