"""Model servers as they are, behind the whole service: they get back what they sent, and no turn is lost to one."""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import orjson
import pytest

from tests import harness
from tests.contracts.gateway import OK, Call, Gateway, answering, gateway, refusing
from tests.e2e.support.environment import AGENTS
from tests.model_servers.mutations import mutated_by_seed
from tests.model_servers.streams import SIGNATURE, Stream, calls, chunk, part, sse
from tests.model_servers.table import STREAMS
from tests.unit.model.reading import Read, read
from turnkeeper.domain.message import FinishReason
from turnkeeper.model.failure import Reason
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.usefixtures("tool_control")

COMPLETED, FAILED = chat_pb2.TURN_STATE_COMPLETED, chat_pb2.TURN_STATE_FAILED
SUM = '{"a":1,"b":2}'
CASES = int(os.environ.get("FUZZ_CASES", "60"))
AT_ONCE = 16
"""Turns of mutated streams at once, at most."""


@asynccontextmanager
async def serving(mongo_uri: str, database: str, server: Gateway) -> AsyncIterator[harness.Stubs]:
    async with (
        harness.serving(mongo_uri, database, server.base_url, agents=AGENTS) as running,
        harness.connect(running.address) as stubs,
    ):
        yield stubs


async def play(stubs: harness.Stubs, session: str, text: str) -> chat_pb2.Turn:
    """Sends a message, and returns its turn once it has ended."""
    turn = await harness.send_message_to_session(stubs, session, text, wait=0)
    return await harness.wait_for_turn(stubs, session, turn.turn_id)


def stream(body: bytes) -> bytes:
    return OK.encode() + body


def the_servers_own(call: Call) -> str | bytes:
    """Wants back what it sent with its calls: its ids of nine characters, and the signature of each."""
    messages: list[dict[str, Any]] = call.body["messages"]
    for message in messages:
        for tool_call in message.get("tool_calls") or ():
            sent_back = (tool_call["id"], tool_call.get("extra_content"))
            if sent_back != ("D681PevKs", {"google": {"thought_signature": SIGNATURE}}):
                return refusing('{"error":{"message":"Tool call id was wrong, or a thought_signature is missing."}}')
        if message["role"] == "tool" and message["tool_call_id"] != "D681PevKs":
            return refusing('{"error":{"message":"Unexpected tool call id in tool results."}}')
    if messages[-1]["content"] != "add":
        return answering(f"{messages[-1]['role']} {messages[-1]['content']}")
    signed = part(None, "D681PevKs", "add", SUM, extra_content={"google": {"thought_signature": SIGNATURE}})
    return stream(sse(calls(signed), chunk("stop")))


async def test_what_came_with_a_call_goes_back_in_the_turn_and_after_it_from_each_replica_and_each_fork(
    mongo_uri: str,
) -> None:
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    async with gateway(the_servers_own) as server:
        async with serving(mongo_uri, database, server) as stubs:
            session = await harness.create_test_session(stubs, agent="worker")
            turn = await play(stubs, session, "add")
            assert (turn.state, turn.answer[0].text) == (COMPLETED, "tool 3.0")
        async with serving(mongo_uri, database, server) as stubs:
            turn = await play(stubs, session, "and now?")
            assert (turn.state, turn.answer[0].text) == (COMPLETED, "user and now?")
            fork = session_pb2.ForkSessionRequest(session_id=session, request_id=harness.new_request_id())
            forked = (await stubs.sessions.ForkSession(fork)).session.session_id
            turn = await play(stubs, forked, "and here?")
            assert turn.state == COMPLETED
            listed = await stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    assert [len(call.body["messages"]) for call in server.calls] == [1, 3, 5, 7], "nothing was refused"
    (request,) = [request for message in listed.messages for request in message.tool_requests]
    assert request.tool_call_id.startswith("call_")
    assert orjson.loads(request.provider_json)["id"] == "D681PevKs"


def refusing_a_word(call: Call) -> str:
    if b"forbidden" in orjson.dumps(call.body["messages"]):
        return refusing('{"error":{"message":"Filtered.","code":"content_filter"}}')
    return answering("Fine.")


def refusing_inside_an_answer(call: Call) -> str | bytes:
    refused = b"forbidden" in orjson.dumps(call.body["messages"])
    return stream(sse(chunk("content_filter"))) if refused else answering("Fine.")


@pytest.mark.parametrize("reply", [refusing_a_word, refusing_inside_an_answer])
async def test_a_refused_message_does_not_stop_those_after_it(
    mongo_uri: str, reply: Callable[[Call], str | bytes]
) -> None:
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    async with gateway(reply) as server, serving(mongo_uri, database, server) as stubs:
        session = await harness.create_test_session(stubs, agent="worker")
        refused = await play(stubs, session, "a forbidden word")
        fine = await play(stubs, session, "another one")
        listed = await stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
    assert refused.error.metadata["reason"] == "CONTENT_FILTER"
    assert (fine.state, fine.answer[0].text) == (COMPLETED, "Fine.")
    assert len(server.calls) == 2
    assert listed.messages[0].content[0].text == "a forbidden word"


def from_the_table(call: Call) -> str | bytes:
    """Answers message N with stream N of the table, and results of tools with a text."""
    last = call.body["messages"][-1]
    return answering("Done.") if last["role"] == "tool" else stream(STREAMS[int(last["content"])].body)


@pytest.mark.parametrize("half", [0, 1])
async def test_each_stream_of_the_table_is_a_turn_of_at_most_two_requests(mongo_uri: str, half: int) -> None:
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    numbers = range(half, len(STREAMS), 2)
    async with gateway(from_the_table) as server, serving(mongo_uri, database, server) as stubs:

        async def turn_of(number: int) -> chat_pb2.Turn:
            session = await harness.create_test_session(stubs, agent="worker")
            return await play(stubs, session, str(number))

        turns = dict(zip(numbers, await asyncio.gather(*map(turn_of, numbers)), strict=True))
    for number, turn in turns.items():
        check_turn(STREAMS[number], turn)
        requests = [call for call in server.calls if call.body["messages"][0]["content"] == str(number)]
        assert len(requests) <= 2, STREAMS[number].what


def broken(number: int) -> tuple[bytes, bytes]:
    """Returns a head, and stream N with a byte of it changed, or cut inside its body; each N in one way."""
    random, body = Random(number), STREAMS[number].body
    if number % 2:
        at = random.randrange(len(body))
        return OK.encode(), body[:at] + bytes([random.randrange(256)]) + body[at + 1 :]
    return of_length(len(body)), body[: random.randrange(len(body))]


def mutated_stream(number: int) -> tuple[bytes, bytes]:
    """Returns a head, and a stream of the table with some of its bytes lost, added or moved; each N in one way."""
    body = mutated_by_seed(STREAMS[number % len(STREAMS)].body, number)
    return of_length(len(body)), body


def of_length(size: int) -> bytes:
    return OK.replace("\r\n\r\n", f"\r\nContent-Length: {size}\r\n\r\n").encode()


async def turns_of(
    mongo_uri: str, database: str, body_of: Callable[[int], tuple[bytes, bytes]], cases: int
) -> list[chat_pb2.Turn]:
    """Returns one turn for each number below `cases`; the model's server gave it the body of its number.

    Asserts that the server got at most two requests of each.
    """
    limit = asyncio.Semaphore(AT_ONCE)

    def reply(call: Call) -> str | bytes:
        last = call.body["messages"][-1]
        return answering("Done.") if last["role"] == "tool" else b"".join(body_of(int(last["content"])))

    async with gateway(reply) as server, serving(mongo_uri, database, server) as stubs:

        async def turn_of(number: int) -> chat_pb2.Turn:
            async with limit:
                session = await harness.create_test_session(stubs, agent="worker")
                return await play(stubs, session, str(number))

        turns = await asyncio.gather(*map(turn_of, range(cases)))
    requests = Counter(call.body["messages"][0]["content"] for call in server.calls)
    assert not {number: count for number, count in requests.items() if count > 2}
    return turns


async def test_each_stream_that_is_broken_is_a_turn_with_the_readers_text_or_a_reason(mongo_uri: str) -> None:
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    turns = await turns_of(mongo_uri, database, broken, len(STREAMS))
    for number, turn in enumerate(turns):
        check_text(number, turn, read([broken(number)[1]]))


async def test_a_mutated_stream_is_a_turn_with_the_readers_text_or_its_reason(mongo_uri: str) -> None:
    """`FUZZ_CASES=10000` tries as many: a case's number is its seed."""
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    turns = await turns_of(mongo_uri, database, mutated_stream, CASES)
    for number, turn in enumerate(turns):
        outcome = read([mutated_stream(number)[1]])
        check_text(number, turn, outcome)
        if isinstance(outcome.end, Reason):
            assert (turn.state, turn.error.metadata["reason"]) == (FAILED, outcome.end), number
        else:
            assert turn.state == COMPLETED, number


def check_text(number: int, turn: chat_pb2.Turn, outcome: Read) -> None:
    """Asserts that a turn that is COMPLETED has the text that a reader of the same bytes gives, any other a reason."""
    if turn.state == COMPLETED:
        assert "".join(content.text for content in turn.answer) == ("Done." if outcome.calls else outcome.text), number
        return
    assert turn.state == FAILED, number
    assert turn.error.metadata["reason"] in set(Reason), number


def check_turn(row: Stream, turn: chat_pb2.Turn) -> None:
    """Asserts that the turn has the stream's exact text, or the failure that the table has."""
    if not isinstance(row.end, FinishReason):
        assert (turn.state, turn.error.metadata["reason"]) == (FAILED, row.end), row.what
        return
    assert turn.state == COMPLETED, row.what
    assert "".join(content.text for content in turn.answer) == ("Done." if row.calls else row.text), row.what
