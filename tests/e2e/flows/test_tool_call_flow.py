"""Tool calls: what runs, and the result that the model gets, also if nothing ran."""

import json

import pytest

from tests import harness
from tests.e2e.support.environment import Environment, transcript
from turnkeeper.pb.v1 import chat_pb2, event_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLOOD = 100
CALL = '{ name = "add", arguments = { a = 1, b = 2 } }'
FLOODING = f"""
[[reply]]
match = "^flood"
tool_calls = [{", ".join([CALL] * FLOOD)}]

"""
SCRIPT = (
    FLOODING
    + """
[[reply]]
match = "^sum"
tool_calls = [
    { name = "add", arguments = { a = 1, b = 2 } },
    { name = "add", arguments = { a = 30, b = 40 } },
]

[[reply]]
match = "^in steps"
tool_calls = [{ name = "add", arguments = { a = 1, b = 2 } }]

[[reply]]
match = "^in steps"
after_tools = 1
text = "Now {tool_result} and more."
tool_calls = [{ name = "add", arguments = { a = 3, b = 4 } }]

[[reply]]
match = "^three"
tool_calls = [
    { name = "hold_reading", arguments = { label = "one" } },
    { name = "hold_reading", arguments = { label = "two" } },
    { name = "hold_reading", arguments = { label = "three" } },
]

[[reply]]
match = "^misbehave: (?P<how>.+)"
tool_calls = [{ name = "misbehave", arguments = { how = "{how}" } }]

[[reply]]
match = "^add with (?P<arguments>.*)"
tool_calls = [{ name = "add", arguments = "{arguments}" }]

[[reply]]
match = "^act"
tool_calls = [{ name = "act", arguments = { label = "foreign" } }]

[[reply]]
match = "^send"
tool_calls = [{ name = "send_message", arguments = { to = "Ada", text = "denied" } }]

[[reply]]
match = "^note"
tool_calls = [{ name = "write_note", arguments = { name = "a", text = "b" } }]

[[reply]]
match = "^what time"
tool_calls = [{ name = "current_time" }]

[[reply]]
match = "^unknown"
tool_calls = [{ name = "no_such_tool" }]

[[reply]]
match = "^ill-named"
tool_calls = [{ name = "add;drop table/../ 名" }]

[[reply]]
match = "^for ever"
after_tools = 0
tool_calls = [{ name = "add", arguments = { a = 0, b = 0 } }]

[[reply]]
match = "^for ever"
after_tools = 1
tool_calls = [{ name = "add", arguments = { a = 1, b = 1 } }]

[[reply]]
match = "^for ever"
after_tools = 2
tool_calls = [{ name = "add", arguments = { a = 2, b = 2 } }]

[[reply]]
match = "^the other tool"
tool_calls = [{ name = "act", arguments = { label = "first" } }, { name = "act", arguments = { label = "second" } }]

[[reply]]
text = "It said: {tool_result}"
"""
)

UNFIT = (
    "{",
    "",
    "[]",
    "null",
    '{"a": 1}',
    '{"a": 1, "b": "x"}',
    '{"a": 1, "b": 2, "c": 3}',
    '{"a": NaN, "b": 1}',
    '{"a": 1e999, "b": 1}',
    '{"a": 1, "b": ' + "9" * 5000 + "}",
    "[" * 50_000,
)
"""Arguments of `add` that are no JSON, no object, too few, too many, of the wrong type or out of range."""

WAYS = (
    "is cancelled from inside",
    "exits",
    "returns no JSON",
    "returns half a character",
    "floods",
    "says too much",
    "says half a character",
)


async def tool_result(env: Environment, message: str, *, agent: str = "worker") -> tuple[event_pb2.ToolReturned, str]:
    """Runs a turn with one tool call. Returns the call's event, and the result that the model got."""
    session = await harness.create_test_session(env.stubs, agent=agent)
    turn = await harness.send_message_to_session(env.stubs, session, message)
    assert turn.state == chat_pb2.TURN_STATE_COMPLETED
    assert harness.answer_of(turn).startswith("It said: ")
    events = await harness.all_events(env.stubs, session)
    returned = next(event.tool_returned for event in events if event.HasField("tool_returned"))
    results = [line for line in transcript(env.model_requests(message)[-1]) if line.startswith("tool: ")]
    return returned, results[-1].removeprefix("tool: ")


class TestToolCallFlow:
    async def test_the_model_gets_every_result_and_then_answers(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, "sum it up")
        assert harness.answer_of(turn) in ("It said: 3.0", "It said: 70.0")
        assert sorted(transcript(env.model_requests("sum it up")[-1])) == [
            "call: add",
            "call: add",
            "tool: 3.0",
            "tool: 70.0",
            "user: sum it up",
        ]
        assert (turn.usage.model_calls, turn.usage.tool_calls, turn.iterations) == (2, 2, 2)

    async def test_calls_one_after_the_other_and_text_in_between(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, "in steps")
        assert harness.answer_of(turn) == "It said: 7.0"
        assert transcript(env.model_requests("in steps")[-1]) == [
            "user: in steps",
            "call: add",
            "tool: 3.0",
            "assistant: Now 3.0 and more.",
            "call: add",
            "tool: 7.0",
        ]

    async def test_what_happens_to_a_call_is_in_the_log(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        await harness.send_message_to_session(env.stubs, session, 'add with {"b": 2, "a": 1}')
        events = await harness.all_events(env.stubs, session)
        assert harness.kinds(events)[3:] == [
            "turn_started",
            "message_completed",
            "tool_called",
            "tool_started",
            "tool_returned",
            "message_completed",
            "turn_completed",
        ]
        completed, called, started, returned = (event for event in events[4:8])
        assert completed.message_completed.tool_requests[0].arguments_json == '{"b": 2, "a": 1}'
        assert called.tool_called.arguments_json == '{"a":1,"b":2}'
        assert len(called.tool_called.arguments_hash) == 64
        assert (called.tool_called.action, called.tool_called.tool_class) == (
            event_pb2.POLICY_ACTION_AUTO,
            event_pb2.TOOL_CLASS_READ_ONLY,
        )
        assert started.tool_started.key == f"{session}:{called.tool_called.tool_call_id}"
        assert (returned.tool_returned.outcome, returned.tool_returned.result_json) == (
            event_pb2.TOOL_OUTCOME_OK,
            "3.0",
        )
        assert returned.tool_returned.started
        assert returned.tool_returned.HasField("duration")

    async def test_parallel_calls_run_at_once_up_to_the_agents_cap(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, "three of them", wait=0)
        await env.tool_control.started("one")
        await env.tool_control.started("two")
        assert not env.tool_control.effects("three")
        env.tool_control.release("one")
        await env.tool_control.started("three")
        env.tool_control.release("three")
        env.tool_control.release("two")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        events = await harness.all_events(env.stubs, session)
        ids = [event.tool_called.tool_call_id for event in events if event.HasField("tool_called")]
        returned = [event.tool_returned.tool_call_id for event in events if event.HasField("tool_returned")]
        assert sorted(returned) == sorted(ids)
        assert len(env.model_requests("three of them")) == 2, (
            "the model is called once before the tools and once after all"
        )

    async def test_every_call_has_a_key_of_its_own(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        await harness.send_message_to_session(env.stubs, session, "the other tool")
        keys = [env.tool_control.effects(label)[0].key for label in ("first", "second")]
        assert len(set(keys)) == 2
        assert all(key.startswith(f"{session}:") for key in keys)

    async def test_listed_messages_pair_calls_with_results(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        await harness.send_message_to_session(env.stubs, session, "sum and list")
        listed = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
        user, with_calls, *results, answer = listed.messages
        assert [message.role for message in (user, with_calls, *results, answer)] == [
            message_pb2.ROLE_USER,
            message_pb2.ROLE_ASSISTANT,
            message_pb2.ROLE_TOOL,
            message_pb2.ROLE_TOOL,
            message_pb2.ROLE_ASSISTANT,
        ]
        assert {result.tool_call_id for result in results} == {call.tool_call_id for call in with_calls.tool_requests}

    async def test_a_model_that_calls_very_many_tools_gets_all_results(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(env.stubs, session, "flood", wait=50)
        assert turn.state == chat_pb2.TURN_STATE_COMPLETED
        assert turn.usage.tool_calls == FLOOD


class TestPolicy:
    async def test_a_tool_with_the_policy_notify_runs_and_the_log_has_that_action(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "what time is it")
        assert turn.state == chat_pb2.TURN_STATE_COMPLETED
        events = await harness.all_events(env.stubs, session)
        called = next(event.tool_called for event in events if event.HasField("tool_called"))
        assert called.action == event_pb2.POLICY_ACTION_NOTIFY

    async def test_without_a_rule_reading_is_free_and_everything_else_asks(self, env: Environment) -> None:
        returned, _ = await tool_result(env, 'add with {"a": 1, "b": 2}', agent="plain")
        assert returned.outcome == event_pb2.TOOL_OUTCOME_OK
        session = await harness.create_test_session(env.stubs, agent="plain")
        turn = await harness.send_message_to_session(env.stubs, session, "note that")
        assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        assert not (env.tool_control.folder / "note-a.txt").exists()


class TestToolsThatFail:
    """A tool's failure is a result: the model gets it, and the turn goes on."""

    async def test_the_message_of_a_tool_error_reaches_the_model(self, env: Environment) -> None:
        returned, result = await tool_result(env, "misbehave: says so")
        assert returned.outcome == event_pb2.TOOL_OUTCOME_FAILED
        assert json.loads(result) == {"error": "The printer is out of paper."}

    async def test_an_exception_reaches_the_model_without_its_message(self, env: Environment) -> None:
        returned, result = await tool_result(env, "misbehave: raises")
        assert returned.outcome == event_pb2.TOOL_OUTCOME_FAILED
        assert "secret" not in result
        assert "ValueError" in result

    @pytest.mark.parametrize("how", WAYS)
    async def test_whatever_a_tool_does_it_has_failed(self, env: Environment, how: str) -> None:
        returned, result = await tool_result(env, f"misbehave: {how}")
        assert returned.outcome == event_pb2.TOOL_OUTCOME_FAILED
        assert returned.started
        assert "error" in json.loads(result)
        assert len(result) < 1000

    async def test_a_tool_that_takes_too_long_has_timed_out(self, env: Environment) -> None:
        returned, result = await tool_result(env, "misbehave: hangs", agent="impatient")
        assert returned.outcome == event_pb2.TOOL_OUTCOME_TIMED_OUT
        assert "0.2 s" in result

    @pytest.mark.parametrize("arguments", UNFIT, ids=lambda arguments: arguments[:16] or "empty")
    async def test_arguments_that_do_not_fit_are_refused_back(self, env: Environment, arguments: str) -> None:
        returned, result = await tool_result(env, f"add with {arguments}")
        assert returned.outcome == event_pb2.TOOL_OUTCOME_INVALID_ARGUMENTS
        assert not returned.started
        assert "error" in json.loads(result)

    @pytest.mark.parametrize("message", ["unknown", "ill-named"])
    async def test_a_tool_that_does_not_exist_is_reported_as_missing(self, env: Environment, message: str) -> None:
        returned, _ = await tool_result(env, message)
        assert returned.outcome == event_pb2.TOOL_OUTCOME_NOT_FOUND
        assert not returned.started

    async def test_a_tool_of_another_agent_is_missing_too(self, env: Environment) -> None:
        returned, _ = await tool_result(env, "act as if you could", agent="talker")
        assert returned.outcome == event_pb2.TOOL_OUTCOME_NOT_FOUND
        assert not env.tool_control.effects("foreign")

    async def test_a_tool_that_the_policy_denies_does_not_run(self, env: Environment) -> None:
        returned, result = await tool_result(env, "send it", agent="asker")
        assert returned.outcome == event_pb2.TOOL_OUTCOME_DENIED
        assert "policy" in result
        assert not (env.tool_control.folder / "outbox.jsonl").exists()

    async def test_a_model_that_never_stops_calling_meets_its_limit(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="worker")
        turn = await harness.send_message_to_session(
            env.stubs, session, "for ever", wait=0, limits=chat_pb2.TurnLimits(max_iterations=2)
        )
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_FAILED
        assert ended.iterations == 2
        assert len(env.model_requests("for ever")) == 2
        after = await harness.send_message_to_session(env.stubs, session, "and now?")
        assert after.state == chat_pb2.TURN_STATE_COMPLETED
