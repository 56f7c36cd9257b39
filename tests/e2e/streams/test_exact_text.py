"""The Python client's text(): exact over failed attempts, resumed streams and replicas, by `restart` alone."""

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment, client_of
from tests.e2e.support.stream_reader import Reader, watch
from turnkeeper_client import Client, Session

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOST = "Grüße aus"
ANSWER = "海: this is the answer."
QUESTION = "It fails midway."
SCRIPT = f"""
[[reply]]
match = "midway"
text = "{ANSWER}"
chunk = 2
delay = "20ms"
every = 2

[[reply]]
match = "midway"
text = "{LOST}"
chunk = 3
delay = "20ms"
fail = "cut"
fail_after = 3

[[reply]]
match = "in silence"
text = "{LOST}"
chunk = 3
delay = "20ms"
fail = "cut"
fail_after = 3
times = 1

[[reply]]
match = "in silence"
text = ""
"""
"""Of the requests with this question each second one is answered: the first attempt of every turn fails."""


class Screen:
    """The screen of a client that prints each text, and clears at a restart."""

    def __init__(self) -> None:
        self.text = ""
        self.restarts = 0

    def show(self, text: str, *, restart: bool) -> None:
        self.text = text if restart else self.text + text
        self.restarts += restart


async def new_session(env: Environment, client: Client) -> Session:
    return client.session(await harness.create_test_session(env.stubs, agent="stubborn"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(env: Environment) -> AsyncIterator[Client]:
    async with client_of(env.address) as new_client:
        yield new_client


@contextlib.asynccontextmanager
async def another(env: Environment, rotation: timedelta = timedelta(minutes=10)) -> AsyncIterator[Client]:
    """Yields a client of another replica."""
    async with (
        harness.serving(env.mongo_uri, env.database, env.model, agents=AGENTS, rotation=rotation) as running,
        client_of(running.address) as new_client,
    ):
        yield new_client


async def test_an_attempt_that_fails_midway_is_cleared_once(env: Environment, client: Client) -> None:
    session, screen = await new_session(env, client), Screen()
    async for text in session.stream(QUESTION).text():
        screen.show(text, restart=text.restart)
    assert (screen.text, screen.restarts) == (ANSWER, 1)


async def test_another_process_goes_on_inside_a_message_that_another_attempt_has_written(
    env: Environment, client: Client
) -> None:
    """It has a cursor and the text on the screen, and nothing else."""
    session, screen = await new_session(env, client), Screen()
    first = session.stream(QUESTION)
    async for text in first.text():
        screen.show(text, restart=text.restart)
        break
    assert LOST.startswith(screen.text)
    assert screen.text
    cursor, shown = first.cursor, screen.text
    assert cursor, "the place after the only piece of its response"
    await client.session(session.id).send(QUESTION, request_id=first.request_id)  # until the turn has ended
    async with another(env) as other:
        for its in (client, other):
            screen.text, screen.restarts = shown, 0
            again = its.session(session.id).stream(QUESTION, request_id=first.request_id, after=cursor)
            async for text in again.text():
                screen.show(text, restart=text.restart)
            assert (screen.text, screen.restarts) == (ANSWER, 1)


async def test_streams_that_rotate_in_midmessage_clear_nothing_more(env: Environment) -> None:
    async with another(env, rotation=timedelta(milliseconds=60)) as client:
        session, screen = await new_session(env, client), Screen()
        async for text in session.stream(QUESTION).text():
            screen.show(text, restart=text.restart)
        assert (screen.text, screen.restarts) == (ANSWER, 1)


async def test_a_watch_of_ends_alone_shows_the_exact_text(env: Environment, client: Client) -> None:
    """It gets deltas, and no event that ends a message or an attempt."""
    session, screen = await new_session(env, client), Screen()
    async with contextlib.aclosing(session.follow(live_only=True, types=["turn_completed"]).batches()) as batches:
        assert (await anext(batches)).caught_up
        turn = await session.send(QUESTION, wait=timedelta())
        async for batch in batches:
            for event in batch.events:
                if event.HasField("turn_completed"):
                    assert event.turn_id == turn.turn_id
                    assert (screen.text, screen.restarts) == (ANSWER, 1)
                    return
                delta = event.content_delta
                screen.show(delta.text, restart=delta.restarts)


async def test_an_answer_without_text_clears_what_a_failed_attempt_showed(env: Environment, client: Client) -> None:
    """No later delta would: the reader of deltas alone, and one that resumes inside the lost text, get an empty one."""
    session, screen, raw = await new_session(env, client), Screen(), Reader(whole=False)
    first = session.stream("It ends in silence.")
    resumed: list[tuple[str, str]] = []
    async for text in first.text():
        screen.show(text, restart=text.restart)
        resumed.append((first.cursor, screen.text))
    assert (screen.text, screen.restarts) == ("", 1)
    cursor, shown = next(place for place in resumed if place[0] and place[1])
    raw.cursor = cursor
    async for _ in watch(env.stubs, session.id, raw, types=["turn_completed"], follow=False):
        pass
    assert [(delta.content_delta.text, delta.content_delta.restarts) for delta in raw.deltas] == [("", True)]
    screen.text = shown
    again = client.session(session.id).stream("It ends in silence.", request_id=first.request_id, after=cursor)
    async for text in again.text():
        screen.show(text, restart=text.restart)
    assert screen.text == ""
