"""One suite on the `Model` promises: servers unlike the scripted model, the connections to them, and proxies."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from tests.contracts.models import Stage, answer, asking, fail, saying, short
from tests.model_servers.streams import Stream
from tests.model_servers.table import STREAMS, name_of
from turnkeeper.domain.message import Message, Role
from turnkeeper.model.contract import ModelAnswer, ModelRequest
from turnkeeper.model.failure import Reason
from turnkeeper.model.script import Reply


def _body(*events: str, end: str = "\n\n") -> str:
    return "".join(f"data: {event}{end}" for event in events)


def _chunked(text: str) -> str:
    return f"{len(text.encode()):x}\r\n{text}\r\n"


HELLO = '{"choices":[{"delta":{"content":"hello"}}]}'
STOP = '{"choices":[{"delta":{},"finish_reason":"stop"}]}'
OK = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


class TestTable:
    """The answers of the table over HTTP."""

    @pytest.mark.parametrize("stream", STREAMS, ids=name_of)
    async def test_each_answer_arrives_and_what_came_with_its_calls_goes_back(
        self, stage: Stage, stream: Stream
    ) -> None:
        requests: list[bytes] = []
        head = f"{OK}Content-Length: {len(stream.body)}\r\n\r\n".encode()
        async with saying(head + stream.body, requests=requests) as base_url:
            model = stage.connect(base_url, close=True)
            if isinstance(stream.end, Reason):
                text, failure = await fail(model)
                assert (text, failure.detail.metadata["reason"]) == (stream.text, stream.end)
                return
            _, last = await answer(model, asking("hello"))
            assert (last.text, last.finish_reason) == (stream.text, stream.end)
            assert tuple((call.tool, call.arguments_json) for call in last.tool_requests) == stream.calls
            if last.tool_requests:
                await answer(model, _next_request(last))
        _check_sent_back(stream, orjson.loads(requests[-1])["messages"])

    async def test_what_came_from_one_server_stays_from_another(self, stage: Stage) -> None:
        stream = next(stream for stream in STREAMS if stream.message_back)
        bodies: list[list[bytes]] = [[], []]
        head = f"{OK}Content-Length: {len(stream.body)}\r\n\r\n".encode()
        async with saying(head + stream.body) as first, saying(head + stream.body, requests=bodies[1]) as second:
            _, last = await answer(stage.connect(first), asking("hello"))
            await answer(stage.connect(second), _next_request(last))
        message = orjson.loads(bodies[1][0])["messages"][1]
        assert set(message) == {"role", "content", "tool_calls"}
        assert set(message["tool_calls"][0]) == {"id", "type", "function"}
        assert message["tool_calls"][0]["id"] == "our-0"


def _next_request(last: ModelAnswer) -> ModelRequest:
    """Returns the request with each call's result, after the service has given the calls its own ids."""
    calls = tuple(replace(call, tool_call_id=f"our-{place}") for place, call in enumerate(last.tool_requests))
    return ModelRequest(
        model="scripted",
        messages=(
            Message(role=Role.USER, text="hello"),
            Message(role=Role.ASSISTANT, text=last.text, tool_requests=calls),
            *(Message(role=Role.TOOL, text=call.tool, tool_call_id=call.tool_call_id) for call in calls),
        ),
    )


def _check_sent_back(stream: Stream, messages: list[dict[str, Any]]) -> None:
    """Asserts that the next request has what came with the calls, and nothing else beside them."""
    if not stream.calls:
        return
    _, message, *results = messages
    assert {key: message[key] for key in message.keys() - {"role", "content", "tool_calls"}} == stream.message_back
    for place, call in enumerate(message["tool_calls"]):
        expected = dict(stream.sent_back[place] if place < len(stream.sent_back) else {})
        name, arguments = stream.calls[place]
        function = {"name": name, "arguments": call["function"]["arguments"], **expected.pop("function", {})}
        assert call == {"id": f"our-{place}", "type": "function", **expected, "function": function}
        assert results[place]["tool_call_id"] == call["id"]
        assert arguments in (
            call["function"]["arguments"],
            orjson.loads(call["function"]["arguments"]).get("invalid_arguments"),
        )


class TestOddServers:
    """Bytes that the scripted model does not send, but others do."""

    @pytest.mark.parametrize(
        "body",
        [
            _body(HELLO, STOP, "[DONE]"),
            _body(HELLO, STOP, "[DONE]", end="\r\n\r\n"),
            _body(HELLO, STOP, "[DONE]").replace("data: ", "data:"),
            _body(HELLO, STOP, "[DONE]").replace("data: ", ": a comment\nevent: x\nid: 7\nretry: 9\ndata: "),
            _body(HELLO, STOP) + "data: [DONE]\n",
            _body(HELLO, STOP),
            _body(HELLO, STOP) + "data: [DONE]",
            _body('{"type":"ping"}', '{"choices":[]}', HELLO, STOP, "[DONE]", "what comes after does not count"),
        ],
    )
    async def test_other_ways_to_write_a_stream(self, stage: Stage, body: str) -> None:
        async with saying(f"{OK}Content-Length: {len(body)}\r\n\r\n{body}") as base_url:
            _, last = await answer(stage.connect(base_url), asking("hello"))
        assert last.text == "hello"

    async def test_chunks_that_come_together_are_one_delta(self, stage: Stage) -> None:
        async with saying(f"{OK}\r\n{_body(HELLO, HELLO, STOP, '[DONE]')}") as base_url:
            deltas, _ = await answer(stage.connect(base_url), asking("hello"))
        assert deltas == ["hellohello"]

    async def test_text_that_arrives_together_with_a_failure_is_yielded(self, stage: Stage) -> None:
        async with saying(f"{OK}\r\n{_body(HELLO, HELLO, '[1]')}") as base_url:
            text, failure = await fail(stage.connect(base_url))
        assert (text, failure.detail.metadata["reason"]) == ("hellohello", Reason.MALFORMED)

    @pytest.mark.parametrize(
        ("response", "reason"),
        [
            (f"{OK}\r\n{_body(HELLO)}", Reason.NO_END),  # its end is the connection's
            (f"{OK}\r\n{_body(HELLO)}data: {STOP}", Reason.NO_END),  # an event needs its empty line
            (f"{OK}Transfer-Encoding: chunked\r\n\r\n{_chunked(_body(HELLO, STOP))}", Reason.CUT),
            (f"{OK}Content-Length: 900\r\n\r\n{_body(HELLO, STOP)}", Reason.CUT),
            (f"{OK}Content-Length: 0\r\n\r\n", Reason.EMPTY),
            (f"{OK}\r\n<html>Sign in</html>", Reason.NO_END),
            (f"{OK}\r\n{_body('[1]')}", Reason.MALFORMED),
            (f"{OK}\r\n{_body(HELLO, '[DONE]')}", Reason.NO_FINISH_REASON),
            (f"{OK}\r\ndata: {'x' * 3_000_000}", Reason.MALFORMED),
            (f"{OK}Transfer-Encoding: chunked\r\n\r\nzz\r\n", Reason.CUT),
            ("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nRetry-After: 3\r\n\r\nbusy", Reason.SERVER_ERROR),
            ("HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n", Reason.REDIRECTED),
            ("HTTP/1.1 400 No\r\nContent-Length: 900\r\n\r\n{", Reason.CUT),
            ("SSH-2.0-OpenSSH\r\n", Reason.NO_CONNECTION),
        ],
    )
    async def test_other_ways_to_fail(self, stage: Stage, response: str, reason: Reason) -> None:
        async with saying(response) as base_url:
            _, failure = await fail(stage.connect(base_url))
        assert failure.detail.metadata["reason"] == reason

    async def test_a_flood_of_comments_meets_the_deadline(self, stage: Stage) -> None:
        async with saying(f"{OK}\r\n", then=": still here\n" * 5000) as base_url:
            _, failure = await fail(stage.connect(base_url, deadlines=short(first_token=0.2)))
        assert failure.detail.metadata["reason"] == Reason.START_TIMEOUT

    async def test_an_end_that_holds_the_connection_open_is_an_end(self, stage: Stage) -> None:
        async with saying(f"{OK}\r\n{_body(HELLO, STOP, '[DONE]')}", hold=True) as base_url:
            _, last = await answer(stage.connect(base_url), asking("hello"))
        assert last.text == "hello"

    async def test_one_connection_serves_one_call_after_another(self, stage: Stage) -> None:
        body = _body(HELLO, STOP, "[DONE]")
        ports: list[int] = []
        async with saying(f"{OK}Content-Length: {len(body)}\r\n\r\n{body}", ports=ports) as base_url:
            model = stage.connect(base_url)
            for _ in range(3):
                await answer(model, asking("hello"))
        assert len(ports) == 3
        assert len(set(ports)) == 1

    async def test_a_connection_to_be_closed_serves_one_call(self, stage: Stage) -> None:
        """Also where the server keeps it."""
        body = _body(HELLO, STOP, "[DONE]")
        ports: list[int] = []
        async with saying(f"{OK}Content-Length: {len(body)}\r\n\r\n{body}", ports=ports) as base_url:
            model = stage.connect(base_url, close=True)
            for _ in range(3):
                await answer(model, asking("hello"))
        assert len(set(ports)) == 3

    async def test_a_proxy_in_the_environment_is_used_for_other_machines(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with saying(f"{OK}\r\n{_body(HELLO, STOP, '[DONE]')}") as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
            _, last = await answer(stage.connect("http://model.invalid/v1"), asking("hello"))
        assert last.text == "hello"

    async def test_a_proxy_in_the_environment_is_not_used_for_this_machine(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        model = await stage.play(Reply(text="direct"))
        assert (await answer(model, asking("hello")))[1].text == "direct"
