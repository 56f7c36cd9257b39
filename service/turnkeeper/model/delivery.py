"""Sends one scripted answer, or its failure, over HTTP."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

import orjson
from aiohttp import web

from turnkeeper.model import playback
from turnkeeper.model.playback import ChatRequest
from turnkeeper.model.script import Reply, ScriptedFailure

# A provider's error text. It is recognizable, so that a test can look for it where it must not be.
VENDOR_TEXT = "scripted vendor text, key sk-scripted-secret"
_REFUSALS: Mapping[ScriptedFailure | None, tuple[HTTPStatus, str, str]] = {
    ScriptedFailure.RATE_LIMIT: (HTTPStatus.TOO_MANY_REQUESTS, "requests", "rate_limit_exceeded"),
    ScriptedFailure.QUOTA: (HTTPStatus.TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota"),
    ScriptedFailure.SERVER_ERROR: (HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", ""),
    ScriptedFailure.BAD_REQUEST: (HTTPStatus.BAD_REQUEST, "invalid_request_error", "unknown_parameter"),
    ScriptedFailure.CONTEXT_LENGTH: (HTTPStatus.BAD_REQUEST, "invalid_request_error", "context_length_exceeded"),
    ScriptedFailure.CONTENT_FILTER: (HTTPStatus.BAD_REQUEST, "invalid_request_error", "content_filter"),
    ScriptedFailure.UNAUTHORIZED: (HTTPStatus.UNAUTHORIZED, "invalid_request_error", "invalid_api_key"),
    ScriptedFailure.NOT_FOUND: (HTTPStatus.NOT_FOUND, "invalid_request_error", "model_not_found"),
}
_ERROR_EVENT = {"error": {"message": VENDOR_TEXT, "type": "server_error", "code": "server_error"}}
_COMMENT_SECONDS = 0.01
"""The least time from one comment to the next, in seconds."""


class Delivery:
    """One answer to one request."""

    def __init__(self, request: web.Request, reply: Reply, chat: ChatRequest, *, stopping: asyncio.Event) -> None:
        """`stopping` is set when the server ends; it ends every stall."""
        self._request = request
        self._reply = reply
        self._chat = chat
        self._stopping = stopping

    async def send(self) -> web.StreamResponse:
        """Sends the whole answer; returns what aiohttp's handler returns."""
        reply = self._reply
        if reply.fail in _REFUSALS:
            status, kind, code = _REFUSALS[reply.fail]
            return error_response(status, kind, code, message=VENDOR_TEXT, headers=_headers(reply))
        if reply.fail is ScriptedFailure.REFUSE:
            return self._hang_up(web.StreamResponse())
        await asyncio.sleep(0 if self._chat.stream else reply.first_delay.total_seconds())
        return await self._send_stream() if self._chat.stream else await self._send_whole()

    async def _send_stream(self) -> web.StreamResponse:
        """Sends the answer as server-sent events."""
        reply = self._reply
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_headers(reply)})
        await response.prepare(self._request)
        if reply.fail is ScriptedFailure.EMPTY:
            return response
        await self._write(response, playback.role_frame(self._chat))
        if reply.fail is ScriptedFailure.SLOW_FIRST_TOKEN:
            await self._stopping.wait()
            return response
        await asyncio.sleep(reply.first_delay.total_seconds())
        strikes_at = _strikes_at(reply)
        for number, frame in enumerate(playback.frames(reply, self._chat)):
            if number == strikes_at:
                break
            await asyncio.sleep(reply.delay.total_seconds() if number else 0)
            await self._write(response, frame)
        await self._write(response, self._last_frames())
        await self._strike(response)
        return response

    def _last_frames(self) -> bytes:
        """Returns what ends the stream; each failure ends it in its own way."""
        match self._reply.fail:
            case None:
                return playback.end_frames(self._reply, self._chat) + playback.DONE_FRAME
            case ScriptedFailure.BAD_JSON:
                return b'data: {"choices": [{"delta": {"content": "ne\n\n' + playback.DONE_FRAME
            case ScriptedFailure.ERROR_EVENT:
                return playback.event(_ERROR_EVENT) + playback.DONE_FRAME
            case ScriptedFailure.NO_FINISH:
                return playback.DONE_FRAME
            case _:
                return b""

    async def _strike(self, response: web.StreamResponse) -> None:
        """Plays the failures that are a behaviour: a stall, endless comments, a cut connection."""
        match self._reply.fail:
            case ScriptedFailure.STALL:
                await self._stopping.wait()
            case ScriptedFailure.COMMENTS:
                while not self._stopping.is_set():
                    await self._write(response, playback.COMMENT_FRAME)
                    await asyncio.sleep(max(self._reply.delay.total_seconds(), _COMMENT_SECONDS))
            case ScriptedFailure.CUT:
                # The chunk is announced with 64 bytes and ends before them.
                assert self._request.transport is not None
                self._request.transport.write(b'40\r\ndata: {"id":"cut","cho')
                self._hang_up(response)
            case _:
                pass

    async def _send_whole(self) -> web.StreamResponse:
        """Sends the answer in one body; a failure between two chunks of a stream happens to this body."""
        fail = self._reply.fail
        finished = fail not in (ScriptedFailure.NO_DONE, ScriptedFailure.NO_FINISH)
        body = orjson.dumps(playback.whole_answer(self._reply, self._chat, finished=finished))
        if fail in (ScriptedFailure.STALL, ScriptedFailure.SLOW_FIRST_TOKEN, ScriptedFailure.COMMENTS):
            await self._stopping.wait()
        if fail is ScriptedFailure.CUT:
            response = web.StreamResponse(headers={"Content-Length": str(len(body))})
            await response.prepare(self._request)
            await response.write(body[: len(body) // 2])
            return self._hang_up(response)
        if fail is ScriptedFailure.EMPTY:
            body = b""
        if fail is ScriptedFailure.BAD_JSON:
            body = body[: len(body) // 2]
        if fail is ScriptedFailure.ERROR_EVENT:
            body = orjson.dumps(_ERROR_EVENT)
        return web.Response(body=body, content_type="application/json", headers=_headers(self._reply))

    async def _write(self, response: web.StreamResponse, frame: bytes) -> None:
        """Sends a frame, `bytes_per_write` bytes at a time."""
        size = self._reply.bytes_per_write or len(frame) or 1
        for start in range(0, len(frame), size):
            await response.write(frame[start : start + size])

    def _hang_up(self, response: web.StreamResponse) -> web.StreamResponse:
        """Closes the connection after what was written has been sent."""
        if self._request.transport is not None:
            self._request.transport.close()
        return response


def error_response(
    status: HTTPStatus, kind: str, code: str, *, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Returns an error as the API has it."""
    error = {"message": message, "type": kind, "param": None, "code": code or None}
    body = orjson.dumps({"error": error})
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def _strikes_at(reply: Reply) -> int | None:
    """Returns after how many chunks the failure comes; None: after all."""
    if reply.fail is None or reply.fail_after is not None:
        return reply.fail_after
    return None if reply.fail.at_end else 1


def _headers(reply: Reply) -> dict[str, str]:
    """Returns the reply's own headers."""
    wait = {"Retry-After": reply.retry_after} if reply.retry_after else {}
    return {**wait, **reply.headers}
