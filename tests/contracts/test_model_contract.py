"""One suite on the `Model` promises: over real HTTP, against the scripted model, and shortly against a real one."""

import asyncio
import socket
import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.contracts.models import KEY, WEATHER, Stage, answer, asking, fail, short
from turnkeeper.codes import Code
from turnkeeper.domain.message import FinishReason, Message, Role, ToolRequest, Usage
from turnkeeper.model.contract import Model, ModelAnswer, ModelRequest
from turnkeeper.model.deadline_watch import Deadlines
from turnkeeper.model.delivery import VENDOR_TEXT
from turnkeeper.model.exchanges import Exchange, Outcome
from turnkeeper.model.failure import Reason
from turnkeeper.model.local import LocalModel
from turnkeeper.model.script import Reply, ScriptedCall, ScriptedFailure, TokenCount

# Every script has letters of one to four bytes, a letter made of two code points, and a line separator.
LONG = "Grüße, 世界! 👩‍🚀 e\u0301 a\u2028b\u0085c <end>" * 3


@pytest.fixture(params=["scripted", "local"])
async def speaker(request: pytest.FixtureRequest, stage: Stage) -> AsyncIterator[tuple[Model, ModelRequest]]:
    """A model that can answer, and something to ask it."""
    if request.param == "scripted":
        yield await stage.play(Reply(text="Paris.")), asking("What is the capital of France?")
        return
    async with LocalModel() as base_url:
        model = stage.connect(base_url, deadlines=Deadlines(), close=True)
        question = asking("What is the capital of France?", model=LocalModel.model_name)
        yield model, replace(question, max_output_tokens=32, temperature=0)


class TestAnswers:
    async def test_it_answers(self, speaker: tuple[Model, ModelRequest]) -> None:
        model, request = speaker
        deltas, last = await answer(model, request)
        assert "Paris" in last.text
        assert deltas
        assert last.finish_reason is FinishReason.STOP
        assert last.tool_requests == ()
        assert last.usage.input_tokens > 0
        assert last.usage.output_tokens > 0
        assert request.model in last.model

    async def test_it_answers_many_at_once(self, speaker: tuple[Model, ModelRequest]) -> None:
        model, request = speaker
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(answer(model, request)) for _ in range(3)]
        assert all("Paris" in call.result()[1].text for call in calls)

    async def test_deltas_arrive_as_they_are_written(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="one two", chunk=4, fail=ScriptedFailure.STALL, fail_after=1))
        stream = model.stream(asking("count"))
        assert await anext(stream) == "one "
        await _close(stream)

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
    async def test_text_is_whole_wherever_the_network_cuts_it(self, stage: Stage, size: int) -> None:
        model = await stage.play(Reply(text=LONG, chunk=3, bytes_per_write=size))
        _, last = await answer(model, asking("hello"))
        assert last.text == LONG

    @pytest.mark.parametrize(
        ("finish_reason", "expected"),
        [("stop", FinishReason.STOP), ("length", FinishReason.LENGTH)],
    )
    async def test_finish_reasons(self, stage: Stage, finish_reason: str, expected: FinishReason) -> None:
        model = await stage.play(Reply(text="so", finish_reason=finish_reason))
        assert (await answer(model, asking("hello")))[1].finish_reason is expected

    async def test_an_answer_may_be_empty(self, stage: Stage) -> None:
        model = await stage.play(Reply(text=""))
        assert (await answer(model, asking("hello")))[1].text == ""

    async def test_usage_is_what_the_server_counted(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="x", usage=TokenCount(input_tokens=7, output_tokens=3)))
        _, last = await answer(model, asking("hello"))
        assert last.usage == Usage(input_tokens=7, output_tokens=3, model_calls=1)

    async def test_usage_may_be_absent(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="x", usage=False))
        assert (await answer(model, asking("hello")))[1].usage == Usage(model_calls=1)


class TestToolCalls:
    async def test_parallel_calls_keep_their_order_and_arguments(self, stage: Stage) -> None:
        calls = tuple(
            ScriptedCall(name="get_weather", arguments=f'{{"city": "{city}"}}', call_id=f"id-{city}")
            for city in ("Zürich", "東京", "Lima")
        )
        model = await stage.play(Reply(text="Looking.", tool_calls=calls, chunk=2, bytes_per_write=3))
        _, last = await answer(model, asking("weather?", tools=(WEATHER,)))
        assert last.finish_reason is FinishReason.TOOL_CALLS
        assert last.text == "Looking."
        assert [(call.tool_call_id, call.tool, call.arguments_json) for call in last.tool_requests] == [
            (call.call_id, call.name, call.arguments) for call in calls
        ]

    async def test_bad_arguments_are_passed_on_as_they_are(self, stage: Stage) -> None:
        model = await stage.play(Reply(tool_calls=(ScriptedCall(name="get_weather", arguments='{"city": "Par'),)))
        _, last = await answer(model, asking("weather?", tools=(WEATHER,)))
        assert last.tool_requests[0].arguments_json == '{"city": "Par'

    @pytest.mark.parametrize("call_id", ["", "same"])
    async def test_missing_and_double_ids_are_replaced_and_stable(self, stage: Stage, call_id: str) -> None:
        call = ScriptedCall(name="get_weather", call_id=call_id)
        model = await stage.play(Reply(tool_calls=(call, call, call)))
        ids = [
            [request.tool_call_id for request in (await answer(model, asking("weather?")))[1].tool_requests]
            for _ in range(2)
        ]
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == 3
        assert all(ids[0])

    async def test_an_id_of_the_past_is_not_used_again(self, stage: Stage) -> None:
        model = await stage.play(Reply(tool_calls=(ScriptedCall(name="get_weather", call_id="call_0"),), after_tools=1))
        past = ToolRequest(tool_call_id="call_0", tool="get_weather", arguments_json="{}")
        messages = (
            Message(role=Role.USER, text="weather?"),
            Message(role=Role.ASSISTANT, tool_requests=(past,)),
            Message(role=Role.TOOL, text="rain", tool_call_id="call_0"),
        )
        _, last = await answer(model, ModelRequest(model="scripted", messages=messages))
        assert last.tool_requests[0].tool_call_id not in ("", "call_0")

    async def test_a_call_cut_short_by_the_output_limit_is_a_failure(self, stage: Stage) -> None:
        model = await stage.play(Reply(tool_calls=(ScriptedCall(name="get_weather"),), finish_reason="length"))
        _, failure = await fail(model)
        assert failure.detail.metadata["reason"] == Reason.TOOL_CALL_CUT_SHORT
        assert failure.detail.code is Code.LLM_TOKEN_LIMIT


# What each scripted failure must become: its reason, its code, whether another try may help.
FAILURES = {
    ScriptedFailure.RATE_LIMIT: (Reason.RATE_LIMIT, Code.LLM_RATE_LIMIT, True),
    ScriptedFailure.QUOTA: (Reason.QUOTA, Code.LLM_RATE_LIMIT, False),
    ScriptedFailure.SERVER_ERROR: (Reason.SERVER_ERROR, Code.LLM_API_ERROR, True),
    ScriptedFailure.BAD_REQUEST: (Reason.BAD_REQUEST, Code.AGENT_CONFIG_ERROR, False),
    ScriptedFailure.CONTEXT_LENGTH: (Reason.CONTEXT_LENGTH, Code.LLM_TOKEN_LIMIT, False),
    ScriptedFailure.CONTENT_FILTER: (Reason.CONTENT_FILTER, Code.LLM_CONTENT_FILTER, False),
    ScriptedFailure.UNAUTHORIZED: (Reason.UNAUTHORIZED, Code.AGENT_CONFIG_ERROR, False),
    ScriptedFailure.NOT_FOUND: (Reason.NOT_FOUND, Code.AGENT_CONFIG_ERROR, False),
    ScriptedFailure.REFUSE: (Reason.NO_CONNECTION, Code.LLM_API_ERROR, True),
    ScriptedFailure.EMPTY: (Reason.EMPTY, Code.LLM_API_ERROR, True),
    ScriptedFailure.SLOW_FIRST_TOKEN: (Reason.START_TIMEOUT, Code.LLM_TIMEOUT, True),
    ScriptedFailure.STALL: (Reason.STALL_TIMEOUT, Code.LLM_TIMEOUT, True),
    ScriptedFailure.COMMENTS: (Reason.STALL_TIMEOUT, Code.LLM_TIMEOUT, True),
    ScriptedFailure.CUT: (Reason.CUT, Code.LLM_API_ERROR, True),
    ScriptedFailure.BAD_JSON: (Reason.MALFORMED, Code.LLM_API_ERROR, True),
    ScriptedFailure.ERROR_EVENT: (Reason.ERROR_EVENT, Code.LLM_API_ERROR, True),
    ScriptedFailure.NO_DONE: (Reason.NO_END, Code.LLM_API_ERROR, True),
    ScriptedFailure.NO_FINISH: (Reason.NO_FINISH_REASON, Code.LLM_API_ERROR, True),
}


class TestFailures:
    @pytest.mark.parametrize("how", list(ScriptedFailure))
    async def test_each_failure_is_raised_and_the_next_call_works(self, stage: Stage, how: ScriptedFailure) -> None:
        model = await stage.play(
            Reply(text="partial text", chunk=7, fail=how, times=1), Reply(text="whole"), deadlines=_deadlines(how)
        )
        text, failure = await fail(model)

        reason, code, retryable = FAILURES[how]
        assert failure.detail.metadata["reason"] == reason
        assert failure.detail.code is code
        assert failure.retryable is retryable
        assert text == ("" if not how.in_stream else "partial text" if how.at_end else "partial")
        assert (await answer(model, asking("again")))[1].text == "whole"

    @pytest.mark.parametrize("how", sorted(FAILURES))
    async def test_no_failure_repeats_the_vendor_or_a_secret(self, stage: Stage, how: ScriptedFailure) -> None:
        model = await stage.play(Reply(text="x", fail=how), deadlines=_deadlines(how))
        _, failure = await fail(model)
        shown = f"{failure.detail} {''.join(traceback.format_exception(failure))}"
        assert not any(word in shown for word in (VENDOR_TEXT, "sk-scripted-secret", KEY, stage.server.base_url))
        assert failure.detail.message.endswith(".")

    @pytest.mark.parametrize("after", [0, 1, 2])
    @pytest.mark.parametrize("how", [how for how in ScriptedFailure if how.in_stream])
    async def test_a_failure_comes_where_the_script_has_it(
        self, stage: Stage, how: ScriptedFailure, after: int
    ) -> None:
        model = await stage.play(
            Reply(text="abcd", chunk=1, fail=how, fail_after=after),
            deadlines=short(first_token=20 if after else 0.3, between_tokens=0.3),
        )
        text, _ = await fail(model)
        assert text == "abcd"[:after]

    @pytest.mark.parametrize("how", [ScriptedFailure.STALL, ScriptedFailure.COMMENTS, ScriptedFailure.SLOW_FIRST_TOKEN])
    async def test_nothing_but_a_token_meets_the_first_deadline(self, stage: Stage, how: ScriptedFailure) -> None:
        """The script sends a role and comments, which are none."""
        after = None if how is ScriptedFailure.SLOW_FIRST_TOKEN else 0
        model = await stage.play(Reply(text="x", fail=how, fail_after=after), deadlines=short(first_token=0.1))
        _, failure = await fail(model)
        assert failure.detail.metadata["reason"] == Reason.START_TIMEOUT

    async def test_a_steady_trickle_meets_the_total(self, stage: Stage) -> None:
        model = await stage.play(
            Reply(text="x" * 1000, chunk=1, delay=timedelta(milliseconds=10)),
            deadlines=short(total=0.2),
        )
        _, failure = await fail(model)
        assert failure.detail.metadata["reason"] == Reason.TOTAL_TIMEOUT

    async def test_a_missed_deadline_is_no_cancel_of_the_caller(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="x", fail=ScriptedFailure.STALL), deadlines=short(between_tokens=0.1))
        await fail(model)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_each_token_moves_the_deadline(self, stage: Stage) -> None:
        model = await stage.play(
            Reply(text="x" * 75, chunk=1, delay=timedelta(milliseconds=20)),
            deadlines=short(first_token=1, between_tokens=1),
        )
        assert len((await answer(model, asking("hello")))[1].text) == 75

    async def test_a_slow_caller_is_not_a_slow_model(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="abc", chunk=1), deadlines=short(between_tokens=0.2))
        items = []
        async for item in model.stream(asking("hello")):
            await asyncio.sleep(0.25)
            items.append(item)
        assert isinstance(items[-1], ModelAnswer)

    async def test_a_content_filter_at_the_end_is_a_failure(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="some", finish_reason="content_filter"))
        text, failure = await fail(model)
        assert (text, failure.detail.code) == ("some", Code.LLM_CONTENT_FILTER)
        assert not failure.retryable

    async def test_an_unknown_finish_reason_is_a_failure(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="some", finish_reason="insufficient_system_resource"))
        _, failure = await fail(model)
        assert failure.detail.metadata["reason"] == Reason.BAD_FINISH_REASON

    @pytest.mark.parametrize(
        ("retry_after", "headers", "wait"),
        [
            ("7", {}, timedelta(seconds=7)),
            ("", {"retry-after-ms": "250"}, timedelta(milliseconds=250)),
            ("Wed, 01 Jan 2031 00:02:00 GMT", {"Date": "Wed, 01 Jan 2031 00:00:00 GMT"}, timedelta(minutes=2)),
            ("", {}, None),
        ],
    )
    async def test_the_provider_says_how_long_to_wait(
        self, stage: Stage, retry_after: str, headers: dict[str, str], wait: timedelta | None
    ) -> None:
        model = await stage.play(Reply(fail=ScriptedFailure.RATE_LIMIT, retry_after=retry_after, headers=headers))
        _, failure = await fail(model)
        assert failure.retry_after == failure.detail.retry_after == wait

    async def test_one_call_is_one_try(self, stage: Stage) -> None:
        model = await stage.play(Reply(fail=ScriptedFailure.SERVER_ERROR))
        await fail(model)
        assert len(stage.server.exchanges.all()) == 1

    async def test_an_answer_over_the_cap_is_a_failure(self, stage: Stage) -> None:
        model = await stage.play(
            Reply(match="fits", text="é" * 102_400, chunk=4096), Reply(text="é" * 102_401, chunk=4096)
        )
        assert len((await answer(model, asking("fits")))[1].text) == 102_400
        _, failure = await fail(model)
        assert failure.detail.metadata["reason"] == Reason.ANSWER_TOO_LONG
        assert failure.detail.code is Code.LLM_TOKEN_LIMIT
        assert not failure.retryable

    async def test_no_server_at_all(self, stage: Stage) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        _, failure = await fail(stage.connect(f"http://127.0.0.1:{port}/v1"))
        assert failure.detail.metadata["reason"] == Reason.NO_CONNECTION
        assert failure.retryable

    async def test_a_server_that_does_not_accept(self, stage: Stage) -> None:
        """A full backlog: the kernel answers nothing."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as waiting:
            waiting.connect(full.getsockname())
            model = stage.connect(f"http://127.0.0.1:{full.getsockname()[1]}/v1", deadlines=short(connect=0.2))
            _, failure = await fail(model)
        assert failure.detail.metadata["reason"] == Reason.CONNECT_TIMEOUT
        assert failure.detail.code is Code.LLM_TIMEOUT


class TestLeaving:
    async def test_closing_early_ends_the_call(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="hello", fail=ScriptedFailure.STALL))
        stream = model.stream(asking("hello"))
        assert await anext(stream) == "hello"
        await _close(stream)
        await _seen(stage, Outcome.DISCONNECTED)

    async def test_cancelling_the_caller_ends_the_call(self, stage: Stage) -> None:
        model = await stage.play(Reply(fail=ScriptedFailure.SLOW_FIRST_TOKEN))
        task = asyncio.create_task(answer(model, asking("hello")))
        await _seen(stage, Outcome.PLAYING)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _seen(stage, Outcome.DISCONNECTED)

    @pytest.mark.parametrize("how", [ScriptedFailure.STALL, ScriptedFailure.COMMENTS, ScriptedFailure.SLOW_FIRST_TOKEN])
    async def test_a_missed_deadline_ends_the_call(self, stage: Stage, how: ScriptedFailure) -> None:
        model = await stage.play(Reply(text="x", fail=how), deadlines=_deadlines(how))
        await fail(model)
        await _seen(stage, Outcome.DISCONNECTED)

    async def test_a_stream_that_never_begins_calls_no_server(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="x"))
        await _close(model.stream(asking("hello")))
        assert stage.server.exchanges.all() == []


def _deadlines(how: ScriptedFailure) -> Deadlines:
    """Short where the failure is a silence. The first token's has to be long enough for the request to arrive."""
    return short(first_token=0.7 if how is ScriptedFailure.SLOW_FIRST_TOKEN else 20, between_tokens=0.2)


async def _close(stream: object) -> None:
    assert isinstance(stream, AsyncGenerator)
    await stream.aclose()


async def _seen(stage: Stage, outcome: Outcome) -> Exchange:
    """Wait until the server has this outcome for its latest request."""
    async with asyncio.timeout(5):
        return (
            await stage.server.exchanges.until(lambda exchanges: bool(exchanges) and exchanges[-1].outcome is outcome)
        )[-1]
