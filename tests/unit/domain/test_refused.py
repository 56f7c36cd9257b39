"""What a model's server refused is not sent again with every later message."""

import pytest

from tests.unit.domain.test_history import STARTED, Log, completed, fold, received, returned
from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain.event import TurnFailed, TurnRetried
from turnkeeper.domain.message import DoubtfulMessage, Message, Usage
from turnkeeper.domain.refused import CUT_SHORT, LEFT_OUT

LONG = "x" * 5000


def failed(code: Code, **metadata: str) -> TurnFailed:
    return TurnFailed(error=ErrorDetail(code=code, message="No.", metadata=metadata), usage=Usage())


CONTENT = failed(Code.LLM_CONTENT_FILTER, reason="CONTENT_FILTER", http_status="400")
LENGTH = failed(Code.LLM_TOKEN_LIMIT, reason="CONTEXT_LENGTH", http_status="400")
UNNAMED = failed(Code.AGENT_CONFIG_ERROR, reason="BAD_REQUEST", http_status="400")
OTHERS = (
    failed(Code.LLM_CONTENT_FILTER, reason="CONTENT_FILTER"),  # of the answer
    failed(Code.LLM_TOKEN_LIMIT, reason="ANSWER_TOO_LONG"),
    failed(Code.AGENT_CONFIG_ERROR, reason="UNAUTHORIZED", http_status="401"),
    failed(Code.LLM_API_ERROR, reason="SERVER_ERROR", http_status="500"),
    failed(Code.TOOL_NOT_FOUND),
)


def a_failed_turn(text: str, failure: TurnFailed) -> Log:
    return [
        ("a", received(text)),
        ("a", STARTED),
        ("a", completed("Let me see.", calls=("1",))),
        ("a", returned("1", f'"{text}"')),
        ("a", failure),
    ]


def sent(log: Log) -> list[Message]:
    return list(fold([*log, ("b", received("and now?")), ("b", STARTED)]).messages(""))


def test_refused_content_is_left_out() -> None:
    texts = [message.text for message in sent(a_failed_turn("bad", CONTENT))]
    assert texts == [LEFT_OUT, "Let me see.", LEFT_OUT, "and now?"]


def test_a_text_that_was_too_long_is_cut() -> None:
    texts = [message.text for message in sent(a_failed_turn(LONG, LENGTH))]
    assert texts == [f"{'x' * 1024} {CUT_SHORT}", "Let me see.", f"{'x' * 1024} {CUT_SHORT}", "and now?"]
    assert sent(a_failed_turn("short", LENGTH))[0].text == "short"


def test_what_may_have_been_refused_stays_and_is_marked() -> None:
    messages = sent(a_failed_turn("why not", UNNAMED))
    assert [message.text for message in messages] == ["why not", "Let me see.", "why not", "and now?"]
    assert [isinstance(message, DoubtfulMessage) for message in messages] == [True, False, True, False]


@pytest.mark.parametrize("failure", OTHERS)
def test_any_other_failure_changes_nothing(failure: TurnFailed) -> None:
    messages = sent(a_failed_turn(LONG, failure))
    assert messages[0].text == LONG
    assert not any(isinstance(message, DoubtfulMessage) for message in messages)


@pytest.mark.parametrize("failure", [CONTENT, LENGTH, UNNAMED])
def test_a_retried_turn_sends_all_of_it_again(failure: TurnFailed) -> None:
    retried = fold([*a_failed_turn(LONG, failure), ("a", TurnRetried(principal="ada", message_id="next"))])
    assert [message.text for message in retried.messages("")] == [LONG, "Let me see.", LONG]
    assert not any(isinstance(message, DoubtfulMessage) for message in retried.messages(""))


def test_readers_of_the_conversation_see_the_whole_text() -> None:
    entries = fold(a_failed_turn("bad", CONTENT)).entries()
    assert [entry.message.text for entry in entries] == ["bad", "Let me see.", "bad"]
