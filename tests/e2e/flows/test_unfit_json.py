"""JSON that is first used where nothing may fail: refused where it comes in, or a result for the model."""

from typing import Any

import orjson
import pytest
from aiohttp import web
from google.protobuf.struct_pb2 import Struct

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from tests.status_details import refused
from turnkeeper.domain.message import MOST_CALLS
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOFT_HYPHEN = "\u00ad"
SCRIPT = f"""
[[reply]]
match = "^a huge number"
tool_calls = [{{ name = "count", arguments = '{{"a": {"1" * 400}}}' }}]

[[reply]]
match = "^invisible arguments"
tool_calls = [{{ name = "count", arguments = '{{"a": "{SOFT_HYPHEN * 30_000}"}}' }}]

[[reply]]
match = "^deep arguments"
tool_calls = [{{ name = "count", arguments = '{{"a": {"[" * 900}{"]" * 900}}}' }}]

[[reply]]
match = "^a long name"
tool_calls = [{{ name = "{"n" * 150_000}", arguments = {{}} }}]

[[reply]]
match = "^a lot"
text = "A lot was used."
usage = {{ input_tokens = {2**63 - 1}, output_tokens = {2**63 - 1} }}

[[reply]]
match = "^look"
tool_calls = [{{ name = "count", arguments = {{ a = 1 }} }}]

[[reply]]
text = "So."
"""
COMPLETED = chat_pb2.TURN_STATE_COMPLETED
ANY = '{"type":"object"}'
CIRCLE = '{"type":"object","if":{"$ref":"#"},"then":{"$ref":"#"}}'
HALVES = '{"type":"object","properties":{"a":{"multipleOf":0.5}}}'


def count(schema_json: str = ANY) -> list[chat_pb2.ClientTool]:
    return [chat_pb2.ClientTool(name="count", description="Count.", schema_json=schema_json)]


async def returned(env: Environment, session: str) -> event_pb2.ToolReturned:
    events = await harness.all_events(env.stubs, session)
    (result,) = [event.tool_returned for event in events if event.HasField("tool_returned")]
    return result


SCHEMAS = {
    "a reference to no schema": (
        '{"type":"object","properties":{"a":{"$ref":"#/properties/b/type"},"b":{"type":"string"}}}'
    ),
    "a huge number": '{"type":"object","properties":{"a":{"multipleOf":%s}}}' % ("1" * 400),
    "deep": '{"type":"object","default":%s}' % ("[" * 64 + "]" * 64),
    "many parts": '{"type":"object","allOf":[' + ",".join(["{}"] * 21_000) + "]}",
}


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_a_clients_schema_is_refused_with_the_message_that_brings_it(env: Environment, schema: str) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    with refused("INVALID_REQUEST") as refusal:
        await harness.send_message_to_session(env.stubs, session, "hello", client_tools=count(SCHEMAS[schema]))
    assert refusal.details.fields == ("client_tools[0].schema_json",)


@pytest.mark.parametrize("levels", [64, 65, 300, 900])
async def test_a_response_schema_has_64_levels_at_most(env: Environment, levels: int) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    schema = '{"a":' * levels + "1" + "}" * levels
    if levels > 64:
        with refused("INVALID_REQUEST") as refusal:
            await harness.send_message_to_session(env.stubs, session, "hello", response_schema_json=schema)
        assert refusal.details.fields == ("response_schema_json",)
    else:
        turn = await harness.send_message_to_session(env.stubs, session, "hello", response_schema_json=schema)
        assert turn.state == COMPLETED


@pytest.mark.parametrize(
    ("message", "schema", "outcome", "complaint"),
    [
        ("a huge number", HALVES, "INVALID_ARGUMENTS", "a number that is too large"),
        ("invisible arguments", ANY, "INVALID_ARGUMENTS", "over 65536 bytes"),
        ("deep arguments", ANY, "INVALID_ARGUMENTS", "deeper than 64 levels"),
        ("look", CIRCLE, "INVALID_ARGUMENTS", "cannot be compared with the tool's schema in time"),
        ("a long name", ANY, "NOT_FOUND", "There is no tool named nnn"),
    ],
)
async def test_what_a_model_made_up_is_a_result_that_it_reads(
    env: Environment, message: str, schema: str, outcome: str, complaint: str
) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    turn = await harness.send_message_to_session(env.stubs, session, message, client_tools=count(schema))
    assert (turn.state, harness.answer_of(turn)) == (COMPLETED, "So.")
    result = await returned(env, session)
    assert event_pb2.ToolOutcome.Name(result.outcome) == f"TOOL_OUTCOME_{outcome}"
    assert complaint in result.result_json
    assert len(result.result_json) < 1000


async def test_results_have_64_levels_at_most(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    turn = await harness.send_message_to_session(env.stubs, session, "look", client_tools=count())
    request = chat_pb2.SubmitToolResultRequest(session_id=session, tool_call_id=turn.pending[0].tool_call_id)
    for levels in (65, 960, 30_000):
        request.result_json = "[" * levels + "]" * levels
        with refused("TOOL_VALIDATION_ERROR"):
            await env.stubs.chat.SubmitToolResult(request)
        with refused("INVALID_REQUEST") as refusal:
            await env.stubs.approvals.DecideApproval(
                approval_pb2.DecideApprovalRequest(
                    approval_id="any",
                    decision=event_pb2.APPROVAL_DECISION_MARK_DONE,
                    arguments_hash="0",
                    result_json=request.result_json,
                )
            )
        assert refusal.details.fields == ("result_json",)
    request.result_json = "[" * 64 + "]" * 64
    await env.stubs.chat.SubmitToolResult(request)
    turn = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert (turn.state, harness.answer_of(turn)) == (COMPLETED, "So.")


async def test_edited_arguments_are_refused_by_their_size_before_anything_reads_them(env: Environment) -> None:
    with refused("TOOL_VALIDATION_ERROR") as refusal:
        await env.stubs.approvals.DecideApproval(
            approval_pb2.DecideApprovalRequest(
                approval_id="any",
                decision=event_pb2.APPROVAL_DECISION_APPROVE,
                arguments_hash="0",
                edited_arguments_json='{"a":"%s"}' % ("x" * 65_536),
            )
        )
    assert refusal.details.fields == ("edited_arguments_json",)


async def test_a_server_that_claims_all_tokens_there_are_spoils_no_sum(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    for number in (1, 2):
        turn = await harness.send_message_to_session(env.stubs, session, "a lot")
        assert turn.state == COMPLETED
        stored = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        assert stored.session.usage.input_tokens == number * turn.usage.input_tokens == number * 10**9


CHUNKS: dict[str, list[bytes]] = {
    "nested 1,024 deep": [b'{"choices":[{"delta":{"content":' + b"[" * 1024 + b"]" * 1024 + b"}}]}"],
    "not even JSON, 100,000 deep": [b'{"choices":' + b"[" * 100_000],
    "more calls than an answer may have": [
        orjson.dumps({"choices": [{"delta": {"tool_calls": [{"index": number, "function": {"name": "t"}}]}}]})
        for number in range(MOST_CALLS + 1)
    ],
}


@pytest.mark.parametrize("chunk", CHUNKS)
async def test_a_chunk_that_cannot_be_read_fails_its_turn_alone(env: Environment, chunk: str) -> None:
    async def complete(_: web.Request) -> web.StreamResponse:
        body = b"".join(b"data: " + data + b"\n\n" for data in (*CHUNKS[chunk], b"[DONE]"))
        return web.Response(body=body, content_type="text/event-stream")

    server = web.Application()
    server.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(server)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port: Any = runner.addresses[0][1]
        async with (
            harness.serving(
                env.mongo_uri, env.database, f"http://127.0.0.1:{port}/v1", agents=AGENTS, concurrency=4
            ) as running,
            harness.connect(running.address) as stubs,
        ):
            session = await harness.create_test_session(stubs, agent="hasty")
            with refused("LLM_TOKEN_LIMIT" if "calls" in chunk else "LLM_API_ERROR"):
                await harness.send_message_to_session(stubs, session, "hello")
            events = await harness.all_events(stubs, session)
            assert harness.kinds(events)[-1] == "turn_failed"
    finally:
        await runner.cleanup()


async def test_metadata_of_the_deepest_form_is_returned_as_it_was_sent(env: Environment) -> None:
    metadata = Struct()
    value: dict[str, Any] = {"a": 1}
    for _ in range(31):
        value = {"a": value}
    metadata.update(value)
    created = await env.stubs.sessions.CreateSession(
        session_pb2.CreateSessionRequest(request_id=harness.new_request_id(), agent="talker", metadata=metadata)
    )
    stored = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=created.session.session_id))
    assert stored.session.metadata == metadata
