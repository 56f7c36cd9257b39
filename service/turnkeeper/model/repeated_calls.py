"""Sends calls as the `openai` client sends them, without its work for each one.

The client makes and checks the address and the headers of each call: a sixth of the Python of a short turn. They are
the same for all calls to one endpoint. So the client makes one call, which goes nowhere, and the others are like it.
"""

import ssl
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

import httpx2
import openai

_LENGTH: Final = "Content-Length"


class RepeatedCalls:
    """Sends calls to one endpoint by one HTTP client, with its proxies, redirects, cookies and hooks."""

    def __init__(self, client: openai.AsyncOpenAI, http_client: httpx2.AsyncClient, endpoint: str) -> None:
        """`http_client` is that of `client`. No call is retried."""
        self._client = client
        self._http_client = http_client
        self._endpoint = endpoint
        self._pattern: httpx2.Request | None = None

    async def post(self, content: bytes | AsyncIterable[bytes], *, size: int) -> httpx2.Response:
        """Sends a body of `size` bytes. Returns the response, whose own body is not read yet. Raises as the client."""
        if self._pattern is None:
            self._pattern = await self._call()
        pattern, stream = self._pattern, httpx2.ByteStream(content) if isinstance(content, bytes) else _Parts(content)
        request = httpx2.Request(
            pattern.method,
            pattern.url,
            headers=pattern.headers,
            cookies=self._http_client.cookies,
            stream=stream,
            extensions=pattern.extensions,
        )
        request.headers[_LENGTH] = str(size)
        try:
            return await self._http_client.send(request, stream=True)
        except httpx2.TimeoutException as error:
            raise openai.APITimeoutError(request=request) from error
        except (httpx2.RequestError, ssl.SSLError) as error:
            raise openai.APIConnectionError(request=request) from error

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()

    async def _call(self) -> httpx2.Request:
        """Returns a call as the client makes it. It is answered here."""
        requests: list[httpx2.Request] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            requests.append(request)
            return httpx2.Response(200)

        async with openai.DefaultAioHttpClient(transport=httpx2.MockTransport(answer), trust_env=False) as http_client:
            await self._client.with_options(http_client=http_client, max_retries=0).post(
                self._endpoint,
                cast_to=httpx2.Response,
                content=b"",
                options={"security": {"bearer_auth": True}, "headers": {_LENGTH: "0"}},
                stream=True,
                stream_cls=openai.AsyncStream[object],
            )
        return requests[0]


class _Parts(httpx2.AsyncByteStream):
    """A body in parts. It can be sent again."""

    def __init__(self, parts: AsyncIterable[bytes]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._parts)
