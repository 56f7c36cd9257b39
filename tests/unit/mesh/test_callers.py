"""What callers count: exact texts, and calls that their callers make again."""

import json
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from tests.mesh.call_records import FAILED, REPEATED, CallRecords, read
from tests.mesh.callers import Shown
from tests.mesh.web import EXPOSED, judge
from turnkeeper_client.errors import Details, InvalidArgument, TransportError, Unavailable
from turnkeeper_client.pb.v1.error_pb2 import RETRY_ADVICE_CHANGE_REQUEST, RETRY_ADVICE_SAME_CALL
from turnkeeper_client.text import TextPiece


def part(text: str, message: str, *, restart: bool = False) -> TextPiece:
    return TextPiece(text, message_id=message, offset=0, restart=restart)


def test_texts_are_joined_by_message_and_a_restart_takes_the_unfinished_one_away() -> None:
    shown = Shown()
    for one in (part("Let me ", "1"), part("see.", "1"), part("The to", "2"), part("The tool", "3", restart=True)):
        shown.add(one)
    assert shown.texts == ["Let me see.", "The tool"]


def test_a_text_that_comes_twice_is_not_exact() -> None:
    shown = Shown()
    for one in (part("Let me ", "1"), part("Let me ", "1"), part("see.", "1")):
        shown.add(one)
    assert shown.texts != ["Let me see."]


class Answering:
    """A call that ends with these errors, one after the other, and then with an answer."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    async def __call__(self) -> str:
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


def unavailable() -> Unavailable:
    again = Details(reason="SERVICE_UNAVAILABLE", retry=RETRY_ADVICE_SAME_CALL, retry_after=timedelta())
    return Unavailable(grpc.StatusCode.UNAVAILABLE, "later", again)


async def test_a_call_is_made_again_as_its_error_advises(tmp_path: Path) -> None:
    records = CallRecords(tmp_path)
    broken = TransportError(grpc.StatusCode.UNAVAILABLE, "reset")
    assert await records.answered("GetSession", Answering(unavailable(), broken)) == "answer"
    records.close()
    counts, lines = read(tmp_path)
    assert counts == {"unary": 1}
    assert [line["what"] for line in lines] == [REPEATED, REPEATED]


async def test_a_call_that_must_not_be_repeated_has_failed(tmp_path: Path) -> None:
    records = CallRecords(tmp_path)
    error = InvalidArgument(grpc.StatusCode.INVALID_ARGUMENT, "no", Details(retry=RETRY_ADVICE_CHANGE_REQUEST))
    assert await records.answered("GetSession", Answering(error)) is None
    records.close()
    assert [(line["what"], line["call"]) for line in read(tmp_path)[1]] == [(FAILED, "GetSession")]


FOUND = {"error": "NotFound", "details": 1, "events": 1, "requestId": "from-a-page", "exposed": sorted(EXPOSED)}


def test_what_a_page_must_find() -> None:
    assert judge(FOUND) == []


@pytest.mark.parametrize("name", sorted(EXPOSED))
def test_a_header_that_is_not_exposed_is_a_fault(name: str) -> None:
    assert judge({**FOUND, "exposed": sorted(EXPOSED - {name})}) == [f"gRPC-Web: the header {name} is not exposed"]


def test_an_error_without_details_is_a_fault() -> None:
    assert judge(json.loads(json.dumps({**FOUND, "details": 0})))
