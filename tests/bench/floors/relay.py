"""F2: a bare relay. The typed stream of the `openai` client, a response for each chunk, and nothing is kept.

With `aiohttp` as its last argument, it uses the client's own `aiohttp` transport; that figure is for information.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio
from openai import AsyncOpenAI, DefaultAioHttpClient

from tests.bench.floors.serving import serve
from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, event_pb2, message_pb2


class Relay(chat_pb2_grpc.ChatServiceServicer):
    """Serves StreamMessage as a typical application does."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def StreamMessage(  # noqa: N802 - the RPC's name
        self, request: chat_pb2.StreamMessageRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[chat_pb2.StreamMessageResponse]:
        stream = await self._client.chat.completions.create(
            model="bench",
            messages=[
                {"role": "system", "content": "You are brief."},
                {"role": "user", "content": request.content[0].text},
            ],
            stream=True,
        )
        texts = []
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
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
    transport = DefaultAioHttpClient() if sys.argv[2:] == ["aiohttp"] else None
    relay = Relay(AsyncOpenAI(base_url=sys.argv[1], api_key="none", http_client=transport))
    serve(lambda server: chat_pb2_grpc.add_ChatServiceServicer_to_server(relay, server))
