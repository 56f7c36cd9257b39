"""Each answer of the table of model servers is read whole, wherever its bytes are cut."""

import pytest

from tests.model_servers.streams import Stream
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
