"""F7: the leanest relay that is still plain code: `aiohttp`, one JSON parse a chunk, one response a chunk."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
from grpc import aio

from tests.bench.floors.serving import serve
from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, event_pb2, message_pb2

BUFFER = 1 << 16


class Relay(chat_pb2_grpc.ChatServiceServicer):
    """Serves StreamMessage on one session of the HTTP client."""

    def __init__(self, model_url: str) -> None:
        self._url = f"{model_url}/chat/completions"
        self._client: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=None)
            self._client = aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=BUFFER)
        return self._client

    async def StreamMessage(  # noqa: N802 - the RPC's name
        self, request: chat_pb2.StreamMessageRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[chat_pb2.StreamMessageResponse]:
        messages = [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": request.content[0].text},
        ]
        body = {"model": "bench", "stream": True, "messages": messages}
        texts, rest = [], b""
        async with self._session().post(self._url, json=body) as response:
            async for data in response.content.iter_any():
                *lines, rest = (rest + data).split(b"\n\n")
                for line in lines:
                    if line == b"data: [DONE]":
                        break
                    choices = orjson.loads(line[6:])["choices"]
                    if choices and (text := choices[0]["delta"].get("content")):
                        texts.append(text)
                        delta = event_pb2.ContentDelta(text=text)
                        yield chat_pb2.StreamMessageResponse(events=[event_pb2.Event(content_delta=delta)])
        content = [message_pb2.Part(text="".join(texts))]
        whole = event_pb2.MessageCompleted(content=content)
        yield chat_pb2.StreamMessageResponse(
            events=[event_pb2.Event(message_completed=whole)],
            turn=chat_pb2.Turn(state=chat_pb2.TURN_STATE_COMPLETED, answer=content),
        )


if __name__ == "__main__":
    relay = Relay(sys.argv[1])
    serve(lambda server: chat_pb2_grpc.add_ChatServiceServicer_to_server(relay, server))
