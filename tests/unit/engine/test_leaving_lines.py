"""A caller that leaves while it stands in a session's line stores nothing, also where an accepted message goes on."""

import asyncio

from tests.unit.engine.simulation.environment import Environment
from tests.unit.engine.simulation.replica import Hold
from turnkeeper.domain.message import Part
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnOptions
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.messages import NewMessage
from turnkeeper.engine.rules.sessions import SessionChange
from turnkeeper.store.changeset import RequestKey


def a_message(key: SessionKey, text: str) -> NewMessage:
    return NewMessage(
        key=RequestKey(
            tenant=key.tenant, session_id=key.session_id, principal="ada", family="message", request_id=text
        ),
        fingerprint=text,
        content=(Part(text=text),),
        if_busy="ENQUEUE",
        options=TurnOptions(),
    )


def test_a_message_whose_caller_leaves_the_line_is_not_sent() -> None:
    environment = Environment()
    key, replica, hold = environment.new_session(), environment.full, Hold("commit")
    received: list[str] = []

    async def change() -> None:
        title = SessionChange(title="new", labels=None, metadata_json=None)
        await replica.sessions.change(key, lambda uow, _: session_rules.update(uow, title, etag=""))
        received.append("changed")

    async def send_and_leave() -> None:
        sending = asyncio.create_task(replica.turns.start(a_message(key, "left")))
        for _ in range(50):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        received.append("left")

    async def send() -> None:
        await replica.turns.start(a_message(key, "stayed"))
        received.append("stayed")

    try:
        environment.start(change(), hold=hold)
        environment.start(send_and_leave())
        environment.start(send())
        assert received == ["left"]
        hold.arrive()
        environment.settle()
        assert received == ["left", "changed", "stayed"]
        kinds = [event.stored.kind for event in environment.stored(key).log]
        assert kinds.count("message_received") == 1
    finally:
        environment.close()
