"""Each answer of the table of model servers is read whole, wherever its bytes are cut."""

import pytest

from tests.model_servers.streams import PARIS, Stream, calls, part, sse
from tests.model_servers.table import STREAMS, name_of
from tests.unit.model.reading import Read, read
from turnkeeper.domain.message import FinishReason


def expected(stream: Stream) -> Read:
    end = stream.end
    is_answer = isinstance(end, FinishReason)
    return Read(text=stream.text, calls=stream.calls if is_answer else (), end=end)


@pytest.mark.parametrize("stream", STREAMS, ids=name_of)
def test_each_server_of_the_table(stream: Stream) -> None:
    assert read([stream.body]) == expected(stream)


@pytest.mark.parametrize("stream", STREAMS, ids=name_of)
def test_each_server_of_the_table_byte_by_byte(stream: Stream) -> None:
    assert read([bytes([byte]) for byte in stream.body]) == expected(stream)


def test_the_name_of_a_call_may_come_after_the_first_of_its_arguments() -> None:
    body = sse(
        calls(part(0, "call_1", None, '{"city":')), calls(part(0, None, "get_weather", '"Paris"}'), finish="tool_calls")
    )
    assert read([body]).calls == (("get_weather", PARIS),)
