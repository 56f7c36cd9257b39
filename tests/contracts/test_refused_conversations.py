"""One suite on the `Model` promises: a server that refuses a conversation as it is, is sent another form of it."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import pytest

from tests.contracts.gateway import Call, Gateway, answering, gateway, refusing
from tests.contracts.models import Stage, answer, fail
from turnkeeper.codes import Code
from turnkeeper.domain.message import DoubtfulMessage, Message, Role, ToolRequest
from turnkeeper.domain.refused import LEFT_OUT
from turnkeeper.model.beside import origin_of, packed
from turnkeeper.model.contract import ModelRequest
from turnkeeper.model.openai import OpenAIModel

SIGNATURE = {"google": {"thought_signature": "sig"}}


def user(text: str) -> Message:
    return Message(role=Role.USER, text=text)


def a_round(number: int, *, kept: str = "", text: str = "") -> tuple[Message, Message]:
    """A call and its result."""
    call = ToolRequest(tool_call_id=f"call_{number:026}", tool="act", arguments_json="{}", provider_json=kept)
    return (
        Message(role=Role.ASSISTANT, text=text, tool_requests=(call,)),
        Message(role=Role.TOOL, text=f"result {number}", tool_call_id=call.tool_call_id),
    )


def request(*messages: Message) -> ModelRequest:
    return ModelRequest(model="m", messages=messages)


def refused(message: str, *, status: str = "400 Bad Request") -> str:
    return refusing(
        orjson.dumps({"error": {"message": message, "type": "invalid_request_error"}}).decode(), status=status
    )


def unless(is_fine: Callable[[list[dict[str, Any]]], bool], message: str, **more: str) -> Callable[[Call], str]:
    """A server that answers conversations which are fine, and refuses all others with this message."""
    return lambda call: answering() if is_fine(call.body["messages"]) else refused(message, **more)


def calls_in(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [call for message in messages for call in message.get("tool_calls") or ()]


def kept_for(model: OpenAIModel, **fields: object) -> str:
    given: dict[str, Any] = {"call_id": "", "call": {}, "function": {}, "message": {}, **fields}
    return packed(origin=origin_of(model.server, "m"), **given)


def has_short_ids(messages: list[dict[str, Any]]) -> bool:
    ids = [call["id"] for call in calls_in(messages)]
    assert ids == [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    return all(re.fullmatch("[a-zA-Z0-9]{9}", call_id) for call_id in ids)


def alternates(messages: list[dict[str, Any]]) -> bool:
    roles = [message["role"] for message in messages if message["role"] != "tool"]
    return all(one != other for one, other in pairwise(roles))


def last_messages(server: Gateway) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = server.calls[-1].body["messages"]
    return messages


TOO_LONG_ID = "Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9."


class TestRefusedConversations:
    @pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Entity", "500 Internal Server Error"])
    async def test_ids_of_an_earlier_version_or_another_server(self, stage: Stage, status: str) -> None:
        async with gateway(unless(has_short_ids, TOO_LONG_ID, status=status)) as server:
            model = stage.connect(server.base_url)
            _, last = await answer(model, request(user("one"), *a_round(1), *a_round(2)))
        assert last.text == "hello"
        assert len(server.calls) == 2
        assert len({call["id"] for call in calls_in(last_messages(server))}) == 2

    async def test_a_server_that_refuses_what_it_sent_itself(self, stage: Stage) -> None:
        """It is remembered: the next call is one request."""
        complaint = "'messages.1' : property 'reasoning' is unsupported, did you mean 'role'?"
        fine = unless(lambda messages: not any("reasoning" in message for message in messages), complaint)
        async with gateway(fine) as server:
            model = stage.connect(server.base_url)
            conversation = request(user("one"), *a_round(1, kept=kept_for(model, message={"reasoning": "Hm."})))
            for _ in range(2):
                assert (await answer(model, conversation))[1].text == "hello"
        assert ["reasoning" in call.body["messages"][1] for call in server.calls] == [True, False, False]

    async def test_a_signature_that_was_never_kept(self, stage: Stage) -> None:
        """Calls of earlier turns become text; those of this turn keep what came with them."""
        complaint = "Function call is missing a thought_signature in functionCall parts."
        signed = unless(lambda messages: all("extra_content" in call for call in calls_in(messages)), complaint)
        async with gateway(signed) as server:
            model = stage.connect(server.base_url)
            new = a_round(2, kept=kept_for(model, call_id="f2", call={"extra_content": SIGNATURE}))
            await answer(model, request(user("one"), *a_round(1, text="Look:"), user("two"), *new))
            assert len(server.calls) == 3
        messages = last_messages(server)
        assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "tool"]
        assert messages[1]["content"] == "Look:\n[The tool act was called with {} and returned: result 1]"
        assert calls_in(messages) == [
            {"id": "f2", "type": "function", "function": {"name": "act", "arguments": "{}"}, "extra_content": SIGNATURE}
        ]

    async def test_a_template_that_wants_each_role_in_its_turn(self, stage: Stage) -> None:
        alternating = unless(alternates, "Conversation roles must alternate user/assistant/user/assistant/...")
        async with gateway(alternating) as server:
            await answer(stage.connect(server.base_url), request(user("one"), user("two")))
        assert [message["content"] for message in last_messages(server)] == ["one\n\ntwo"]

    async def test_what_a_server_refused_before_without_a_reason(self, stage: Stage) -> None:
        refuses = unless(lambda messages: "poison" not in orjson.dumps(messages).decode(), "I do not like this.")
        async with gateway(refuses) as server:
            await answer(
                stage.connect(server.base_url),
                request(DoubtfulMessage(role=Role.USER, text="poison"), user("and now?")),
            )
        assert [message["content"] for message in last_messages(server)] == [f"{LEFT_OUT}\n\nand now?"]

    @pytest.mark.parametrize(
        ("conversation", "requests"),
        [
            ((user("one"),), 1),
            ((user("one"), *a_round(1)), 2),
            ((user("one"), *a_round(1), user("two"), *a_round(2)), 3),
        ],
    )
    async def test_a_server_that_refuses_everything(
        self, stage: Stage, conversation: tuple[Message, ...], requests: int
    ) -> None:
        async with gateway(unless(lambda _: False, "No.")) as server:
            _, failed = await fail(stage.connect(server.base_url), request(*conversation))
        assert failed.detail.code is Code.AGENT_CONFIG_ERROR
        assert len(server.calls) == requests

    @pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Busy", "429 Too Many Requests", "401 No"])
    async def test_any_other_failure_is_not_repeated(self, stage: Stage, status: str) -> None:
        async with gateway(unless(lambda _: False, "No.", status=status)) as server:
            await fail(stage.connect(server.base_url), request(user("one"), *a_round(1)))
        assert len(server.calls) == 1
