"""B.3: a run that breaks on a defect of ours is tried once more, then its turn fails with RUN_DEFECT."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS
from tests.status_details import refused
from turnkeeper.domain.event import MessageCompleted
from turnkeeper.pb.v1 import chat_pb2, error_pb2
from turnkeeper.store.changeset import Changeset, CommitResult, Snapshot
from turnkeeper.store.mongo.store import MongoStore

SCRIPT = """
[[reply]]
text = "You said: {user}"
"""
LEASE = timedelta(seconds=50)
"""Longer than a test: no lease lapses."""


@dataclass(slots=True)
class Defect:
    """Breaks runs at these places, one after the other."""

    places: list[str]
    broken: list[str] = field(default_factory=list)
    """The replicas whose runs broke."""

    def new_store(self, *args: Any, **settings: Any) -> "Defective":
        """Returns the store of a server."""
        return Defective(self, *args, **settings)

    def break_at(self, place: str, replica: str) -> None:
        """Raises an error if it is due here."""
        if self.places and place == self.places[0]:
            del self.places[0]
            self.broken.append(replica)
            raise RuntimeError("a defect")


class Defective(MongoStore):
    """A store with a defect, in storing a model's answer or in reading a claimed session."""

    def __init__(self, defect: Defect, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._defect = defect

    async def commit(self, changeset: Changeset) -> CommitResult:
        if any(isinstance(event.payload, MessageCompleted) for event in changeset.events):
            self._defect.break_at("answer", self._replica)
        return await super().commit(changeset)

    async def snapshot(self, *args: Any, **kwargs: Any) -> Snapshot | None:
        if kwargs.get("turn_id"):
            self._defect.break_at("session", self._replica)
        return await super().snapshot(*args, **kwargs)


async def test_b3_a_run_that_breaks_twice_ends_its_turn_as_our_defect(mongo_uri: str, database_name: str) -> None:
    defect = Defect(["answer", "answer"])
    settings: dict[str, Any] = {"agents": AGENTS, "lease": LEASE, "new_store": defect.new_store}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, **settings) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="talker")
        with refused("RUN_DEFECT") as refusal:
            await harness.send_message_to_session(stubs, session, "poison")
        assert refusal.details.status is grpc.StatusCode.ABORTED
        assert refusal.details.detail.retry == error_pb2.RETRY_ADVICE_RETRY_TURN
        assert "lost" not in refusal.details.message
        assert len(model.exchanges.all()) == 2
        turn_id = refusal.details.detail.turn_id
        response = await stubs.chat.RetryTurn(
            chat_pb2.RetryTurnRequest(session_id=session, turn_id=turn_id, request_id="again")
        )
        ended = await harness.wait_for_turn(stubs, session, response.turn.turn_id)
        assert harness.answer_of(ended) == "You said: poison"
        following = await harness.send_message_to_session(stubs, session, "next")
        assert harness.answer_of(following) == "You said: next"
    await check(mongo_uri, database_name)


async def test_b3_the_second_run_is_on_another_replica_if_there_is_one(mongo_uri: str, database_name: str) -> None:
    defect = Defect(["answer"] * 9)
    settings: dict[str, Any] = {"agents": AGENTS, "lease": LEASE}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(
            mongo_uri, database_name, model, replica="defective", new_store=defect.new_store, **settings
        ) as running,
        harness.serving(mongo_uri, database_name, model, replica="sound", **settings),
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="talker")
        for words in ("one", "two", "three"):
            turn = await harness.send_message_to_session(stubs, session, words)
            assert harness.answer_of(turn) == f"You said: {words}"
        assert defect.broken == ["defective"] * 3
        assert len(model.exchanges.all()) == 6
    await check(mongo_uri, database_name)


async def test_b3_a_session_that_cannot_be_read_calls_no_model_again(mongo_uri: str, database_name: str) -> None:
    """The end of the turn, too, breaks at first: it is stored later."""
    defect = Defect(["answer", "session", "session"])
    settings: dict[str, Any] = {"agents": AGENTS, "lease": LEASE, "new_store": defect.new_store}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, **settings) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="talker")
        with refused("RUN_DEFECT"):
            await harness.send_message_to_session(stubs, session, "unreadable")
        assert not defect.places
        assert len(model.exchanges.all()) == 1
    await check(mongo_uri, database_name)
