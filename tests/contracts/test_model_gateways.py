"""One suite on the `Model` promises: what gateways refuse, redirect and report."""

import logging
from collections.abc import Callable

import orjson
import pytest

from tests.contracts.gateway import OK, Call, answering, gateway, refusing
from tests.contracts.models import KEY, WEATHER, Stage, answer, asking, fail
from turnkeeper.codes import Code
from turnkeeper.domain.message import Message, Role
from turnkeeper.model.contract import ModelRequest
from turnkeeper.model.failure import Reason
from turnkeeper.model.openai import LONGEST_SENTENCE
from turnkeeper.model.openai_client import Provider
from turnkeeper.model.request_shape import Refusals

MODEL_LOG = "turnkeeper.model"


def _request(*, schema: str = "", model: str = "m") -> ModelRequest:
    return ModelRequest(
        model=model,
        messages=(Message(role=Role.USER, text="hello"),),
        tools=(WEATHER,),
        max_output_tokens=9,
        temperature=0.5,
        response_schema_json=schema,
    )


def _unknown(*fields: str) -> Callable[[Call], str]:
    """Refuses the first of these fields that a request has, as OpenAI does; answers a request without them."""

    def reply(call: Call) -> str:
        for field in fields:
            if field in call.body:
                error = {"message": f"Unknown parameter: '{field}'.", "param": field, "code": "unknown_parameter"}
                return refusing(orjson.dumps({"error": error}).decode())
        return answering()

    return reply


class TestRefusedFields:
    """A field that a server refuses is left out, if no answer depends on it."""

    async def test_what_can_go_is_left_out_and_remembered(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, MODEL_LOG):
            async with gateway(_unknown("stream_options")) as server:
                model = stage.connect(server.base_url)
                for _ in range(2):
                    assert (await answer(model, _request()))[1].text == "hello"
        assert server.sent("stream_options", "temperature") == [
            {"stream_options", "temperature"},
            {"temperature"},
            {"temperature"},
        ]
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "silently"

    async def test_an_answer_that_will_differ_is_a_warning(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with gateway(_unknown("temperature")) as server:
            model = stage.connect(server.base_url)
            for _ in range(2):
                await answer(model, _request())
        assert len(server.calls) == 3
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "refuses the field temperature for the model m" in warning.getMessage()

    async def test_two_repeats_a_call_and_the_next_call_goes_on_from_there(self, stage: Stage) -> None:
        async with gateway(_unknown("stream_options", "temperature", "seed")) as server:
            provider = Provider(base_url=server.base_url, api_key=KEY, extra_body_json='{"seed":1}')
            model = stage.open(provider)
            _, failed = await fail(model, _request())
            assert len(server.calls) == 3
            assert failed.detail.code is Code.AGENT_CONFIG_ERROR
            assert (await answer(model, _request()))[1].text == "hello"
        assert server.sent("stream_options", "temperature", "seed")[2:] == [{"seed"}, {"seed"}, set()]

    async def test_several_refused_at_once_cost_one_repeat(self, stage: Stage) -> None:
        def reply(call: Call) -> str:
            if "stream_options" in call.body:
                message = "Unrecognized request arguments supplied: stream_options, parallel_tool_calls"
                return refusing(orjson.dumps({"error": {"message": message, "param": None}}).decode())
            return answering()

        async with gateway(reply) as server:
            provider = Provider(
                base_url=server.base_url, api_key=KEY, extra_body_json='{"parallel_tool_calls":false,"store":false}'
            )
            await answer(stage.open(provider), _request())
        assert server.sent("stream_options", "parallel_tool_calls", "store") == [
            {"stream_options", "parallel_tool_calls", "store"},
            {"store"},
        ]

    @pytest.mark.parametrize(
        ("refused", "accepted"),
        [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")],
    )
    async def test_the_output_limit_is_kept_under_its_other_name(
        self, stage: Stage, refused: str, accepted: str
    ) -> None:
        async with gateway(_unknown(refused)) as server:
            provider = Provider(base_url=server.base_url, api_key=KEY, limit_field=refused)
            await answer(stage.open(provider), _request())
        assert [call.body.get(accepted) for call in server.calls] == [None, 9]
        assert [call.body.get(refused) for call in server.calls] == [9, None]

    async def test_a_server_that_refuses_any_limit_fails_the_call(self, stage: Stage) -> None:
        async with gateway(_unknown("max_tokens", "max_completion_tokens")) as server:
            _, failed = await fail(stage.connect(server.base_url), _request())
        assert len(server.calls) == 2
        assert failed.detail.metadata["reason"] == Reason.FIELD_REFUSED
        assert "omit = [" in failed.detail.message

    @pytest.mark.parametrize("field", ["response_format", "tools"])
    async def test_what_an_answer_depends_on_is_never_left_out(self, stage: Stage, field: str) -> None:
        async with gateway(_unknown(field)) as server:
            _, failed = await fail(stage.connect(server.base_url), _request(schema='{"type":"object"}'))
        assert len(server.calls) == 1
        assert failed.detail.code is Code.AGENT_CONFIG_ERROR
        assert not failed.retryable
        assert failed.detail.metadata["field"] == field
        assert f'omit = ["{field}"]' in failed.detail.message

    async def test_an_agents_keys_leave_out_anything(self, stage: Stage) -> None:
        async with gateway(_unknown("response_format", "tools", "stream_options")) as server:
            provider = Provider(
                base_url=server.base_url, api_key=KEY, omit=("response_format", "tools", "stream_options")
            )
            await answer(stage.open(provider), _request(schema='{"type":"object"}'))
        assert len(server.calls) == 1

    async def test_an_unknown_field_of_the_agents_own_is_never_left_out(self, stage: Stage) -> None:
        async with gateway(_unknown("guided_json")) as server:
            provider = Provider(base_url=server.base_url, api_key=KEY, extra_body_json='{"guided_json":{}}')
            _, failed = await fail(stage.open(provider), _request())
        assert len(server.calls) == 1
        assert failed.detail.metadata["field"] == "guided_json"

    async def test_each_server_and_model_learns_alone(self, stage: Stage) -> None:
        refusals = Refusals()
        async with gateway(_unknown("stream_options")) as one, gateway(_unknown("stream_options")) as other:
            for server, model in [(one, "a"), (one, "a"), (one, "b"), (other, "a")]:
                connected = stage.open(Provider(base_url=server.base_url, api_key=KEY), refusals=refusals)
                await answer(connected, _request(model=model))
        assert (len(one.calls), len(other.calls)) == (5, 2)

    async def test_a_field_that_was_not_to_blame_is_not_remembered(self, stage: Stage) -> None:
        """The text repeats the request: without what it names, the next call is refused as well."""
        broken = True

        def reply(_: Call) -> str:
            return refusing('{"error":"unsupported value in {temperature: 0.5}"}') if broken else answering()

        async with gateway(reply) as server:
            model = stage.connect(server.base_url)
            await fail(model, _request())
            broken = False
            await answer(model, _request())
        assert "temperature" in server.calls[-1].body

    async def test_a_refusal_inside_an_answer(self, stage: Stage) -> None:
        def reply(call: Call) -> str:
            if "stream_options" in call.body:
                return f'{OK}data: {{"error":{{"code":400,"message":"stream_options is not supported"}}}}\n\n'
            return answering()

        async with gateway(reply) as server:
            await answer(stage.connect(server.base_url), _request())
        assert len(server.calls) == 2

    async def test_no_repeat_once_text_was_yielded(self, stage: Stage) -> None:
        chunk = '{"choices":[{"delta":{"content":"hal"}}]}'
        error = '{"error":{"code":400,"message":"stream_options is not supported"}}'
        async with gateway(lambda _: f"{OK}data: {chunk}\n\ndata: {error}\n\n") as server:
            text, _ = await fail(stage.connect(server.base_url), _request())
        assert text == "hal"
        assert len(server.calls) == 1


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_another_origin_gets_nothing(self, stage: Stage, status: int) -> None:
        async with gateway(lambda _: answering()) as thief:
            location = f"Location: {thief.base_url}/chat/completions\r\n"
            async with gateway(lambda _: refusing("", status=f"{status} Elsewhere", headers=location)) as server:
                _, failed = await fail(stage.connect(server.base_url))
        assert not thief.calls
        assert failed.detail.metadata == {"reason": Reason.REDIRECTED, "http_status": str(status)}
        assert "follow_redirects" in failed.detail.message
        assert not failed.retryable

    async def test_another_origin_that_the_agent_allows_gets_the_call_without_its_secrets(self, stage: Stage) -> None:
        async with gateway(lambda _: answering()) as other:
            location = f"Location: {other.base_url}/chat/completions\r\n"
            async with gateway(lambda _: refusing("", status="307 There", headers=location)) as server:
                provider = Provider(
                    base_url=server.base_url,
                    api_key=KEY,
                    headers=(("Api-Key", "azure-key-1"),),
                    follow_redirects=True,
                )
                await answer(stage.open(provider), asking("h" * 400_000))
        (call,) = other.calls
        assert call.body["messages"][-1]["content"] == "h" * 400_000
        assert "authorization" not in call.headers
        assert "api-key" not in call.headers

    @pytest.mark.parametrize("size", [5, 400_000])
    @pytest.mark.parametrize("status", [307, 308])
    async def test_the_same_origin_is_followed(self, stage: Stage, status: int, size: int) -> None:
        def reply(call: Call) -> str:
            if call.target.startswith("/v1/"):
                return refusing("", status=f"{status} There", headers="Location: /v2/chat/completions\r\n")
            return answering()

        async with gateway(reply) as server:
            await answer(stage.connect(server.base_url), asking("h" * size))
        assert [call.method for call in server.calls] == ["POST", "POST"]
        assert server.calls[1].body["messages"][-1]["content"] == "h" * size
        assert server.calls[1].headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize(
        "location", ["/v1/chat/completions", "http://[::1", "ftp://127.0.0.1/", "//", "http://127.0.0.1:99999/"]
    )
    async def test_a_redirect_that_leads_nowhere(self, stage: Stage, location: str) -> None:
        headers = f"Location: {location}\r\n"
        async with gateway(lambda _: refusing("", status="307 There", headers=headers)) as server:
            _, failed = await fail(stage.connect(server.base_url))
        assert failed.detail.metadata["reason"] == Reason.REDIRECTED
        assert len(server.calls) <= 6


class TestReports:
    """What a server reports is in the log, and only there."""

    async def test_the_servers_own_sentence_is_in_the_log_under_the_errors_id(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        report = '{"error":{"message":"Deployment xyz is paused.\\nAsk Ada.","code":"paused"}}'
        async with gateway(lambda _: refusing(report)) as server:
            _, failed = await fail(stage.connect(server.base_url))
        (record,) = [record for record in caplog.records if record.name.startswith(MODEL_LOG)]
        assert record.levelno == logging.WARNING
        log_id = failed.detail.metadata["log_id"]
        assert f"log id {log_id}" in record.getMessage()
        assert record.getMessage().endswith("Deployment xyz is paused. Ask Ada.")
        assert log_id in failed.detail.message
        assert "xyz" not in failed.detail.message
        assert "xyz" not in str(failed.detail.metadata)

    async def test_every_failure_has_an_id_of_its_own(self, stage: Stage) -> None:
        async with gateway(lambda _: refusing("busy", status="503 Busy")) as server:
            model = stage.connect(server.base_url)
            ids = {(await fail(model))[1].detail.metadata["log_id"] for _ in range(3)}
        assert len(ids) == 3

    async def test_secrets_are_masked_and_long_sentences_are_cut(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        sentence = (
            f"Incorrect API key provided: {KEY}. Header api-key=azure-key-1 Bearer abcdefghij "
            "sk-proj-1234567890abcdefgh https://ada:pass-word@host/ /v1?key=query-key-1 query-key-1 " + "x" * 3000
        )
        report = orjson.dumps({"error": {"message": sentence}}).decode()
        async with gateway(lambda _: refusing(report, status="401 No")) as server:
            base_url = f"{server.base_url}?key=query-key-1"
            await fail(stage.open(Provider(base_url=base_url, api_key=KEY, headers=(("X-Secret", "azure-key-1"),))))
        (line,) = [record.getMessage() for record in caplog.records if record.name.startswith(MODEL_LOG)]
        for secret in (KEY, "azure-key-1", "abcdefghij", "1234567890", "pass-word", "query-key"):
            assert secret not in line
        assert len(line) < LONGEST_SENTENCE + 200

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ('{"error":{"message":"prompt is too long: 9 tokens > 8 maximum"}}', Reason.CONTEXT_LENGTH),
            ('{"error":{"code":429,"message":"m"}}', Reason.RATE_LIMIT),
            ('{"error":{"code":"401","message":"m"}}', Reason.UNAUTHORIZED),
            ('{"error":"The model is loading"}', Reason.ERROR_EVENT),
            ('{"object":"error","message":"m","code":400}', Reason.BAD_REQUEST),
            ('{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', Reason.ERROR_EVENT),
            ('{"success":false,"errors":[{"code":5006,"message":"m"}]}', Reason.ERROR_EVENT),
            ('{"base_resp":{"status_code":1008,"status_msg":"insufficient balance"},"choices":null}', Reason.QUOTA),
        ],
    )
    async def test_an_error_object_with_http_200(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, body: str, reason: Reason
    ) -> None:
        async with gateway(lambda _: f"{OK}data: {body}\n\n") as server:
            _, failed = await fail(stage.connect(server.base_url))
        assert failed.detail.metadata["reason"] == reason
        assert failed.detail.metadata["log_id"] in caplog.text

    @pytest.mark.parametrize(
        ("kind", "body", "reason", "sentence"),
        [
            (
                "application/json",
                '{"error":{"code":400,"message":"No such deployment"}}',
                Reason.BAD_REQUEST,
                "No such depl",
            ),
            ("application/json", '[{"error":{"code":429,"message":"Slow down"}}]', Reason.RATE_LIMIT, "Slow down"),
            ("application/json", '{"detail":"Not authenticated here"}', Reason.ERROR_EVENT, "Not authenticated here"),
            ("text/event-stream", 'data: [{"error":{"code":503,"message":"Busy"}}]\n\n', Reason.ERROR_EVENT, "Busy"),
            ("text/event-stream", 'event: error\ndata: {"error":{"message":"Busy"}}\n\n', Reason.ERROR_EVENT, "Busy"),
            (
                "text/html",
                "<!DOCTYPE html><title>Sign in</title><p>Who are you?</p>",
                Reason.NO_END,
                "Sign in Who are you?",
            ),
            ("text/plain", "upstream connect error", Reason.NO_END, "upstream connect error"),
        ],
    )
    async def test_what_comes_with_http_200_in_place_of_a_stream(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, kind: str, body: str, reason: Reason, sentence: str
    ) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
        async with gateway(lambda _: head + body) as server:
            _, failed = await fail(stage.connect(server.base_url))
        assert failed.detail.metadata["reason"] == reason
        (line,) = [record.getMessage() for record in caplog.records if record.name.startswith(MODEL_LOG)]
        assert failed.detail.metadata["log_id"] in line
        assert sentence in line

    @pytest.mark.parametrize("end", ["\n\n", "\n", ""])
    async def test_a_stream_that_ends_early_is_not_taken_for_a_report(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, end: str
    ) -> None:
        chunk = '{"choices":[{"delta":{"content":"a secret of the user"}}]}'
        async with gateway(lambda _: f"{OK}data: {chunk}{end}") as server:
            _, failed = await fail(stage.connect(server.base_url))
        assert failed.detail.metadata == {"reason": Reason.NO_END}
        assert "a secret of the user" not in caplog.text

    async def test_an_endless_error_answer_ends(self, stage: Stage) -> None:
        head = "HTTP/1.1 400 No\r\nContent-Length: 100000000\r\n\r\n"
        async with gateway(lambda _: head + '{"error":"' + "x" * 3_000_000) as server:
            _, failed = await fail(stage.connect(server.base_url))
        assert failed.detail.metadata["reason"] == Reason.BAD_REQUEST
