"""Serves the OpenAI API over HTTP from a script: for demonstrations, tests and load tests."""

import asyncio
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson
from aiohttp import web

from turnkeeper.model import playback
from turnkeeper.model.delivery import Delivery, error_response
from turnkeeper.model.exchanges import Exchanges, Outcome
from turnkeeper.model.playback import BadChatRequest, Chooser, Player
from turnkeeper.model.script import Script
from turnkeeper.model.script_file import ECHO, parse_script

_KEPT_EXCHANGES = 200
"""The latest exchanges that GET /requests returns."""
_MAX_REQUEST_BYTES = 64 * 1024 * 1024
"""Bytes of a request's body; a larger one is refused with 413."""
_STOP_SECONDS = 0.2
"""Seconds that open answers have to end when the server stops."""
_RECORDED_HEADERS = ("connection", "content-length", "content-type", "transfer-encoding", "user-agent")


class ScriptedModel:
    """A server on loopback that runs inside `async with`. An OpenAI client connects to its `base_url`.

    Entering raises ValueError if the host is not loopback or the port not 0 to 65535, OSError if the port is taken.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        record: Path | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        """Without a script the server echoes. Port 0 takes a free one. Request bodies are appended to `record`.

        `chooser` decides on the answers in place of the script.
        """
        self.exchanges = Exchanges(keep=_KEPT_EXCHANGES, file=record)
        self.base_url = ""
        self._script = script or parse_script(ECHO)
        self._player = chooser or Player(self._script)
        self._host = host
        self._port = port
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        """Starts the server."""
        address = ip_address("127.0.0.1" if self._host == "localhost" else self._host)
        if not address.is_loopback:
            raise ValueError(f"a scripted model serves this machine only: {self._host} is not a loopback address")
        if not 0 <= self._port <= 65535:
            raise ValueError(f"port must be 0 to 65535, not {self._port}")
        self._runner = web.AppRunner(
            self._application(), access_log=None, handler_cancellation=True, shutdown_timeout=_STOP_SECONDS
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, str(address), self._port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        host = f"[{address}]" if address.version == 6 else str(address)
        self.base_url = f"http://{host}:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the answers that are being sent, then stops the server."""
        self._stopping.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def _application(self) -> web.Application:
        """Returns the HTTP application with its routes."""
        application = web.Application(client_max_size=_MAX_REQUEST_BYTES)
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.get("/requests", self._requests),
                web.delete("/requests", self._clear_requests),
            ]
        )
        return application

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Answers GET /healthz."""
        return web.Response(text="ok\n")

    async def _models(self, _request: web.Request) -> web.Response:
        """Answers GET /v1/models."""
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "script"} for name in self._script.models]
        return _json({"object": "list", "data": models})

    async def _requests(self, _request: web.Request) -> web.Response:
        """Answers GET /requests with the recorded exchanges."""
        exchanges = [
            {
                "number": exchange.number,
                "rule": exchange.rule,
                "outcome": exchange.outcome,
                "headers": exchange.headers,
                "body": orjson.Fragment(exchange.body),
            }
            for exchange in self.exchanges.all()
        ]
        return _json(exchanges)

    async def _clear_requests(self, _request: web.Request) -> web.Response:
        """Answers DELETE /requests: drops the recorded exchanges."""
        self.exchanges.clear()
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        """Answers POST /v1/chat/completions by the first rule that applies."""
        body = await request.read()
        try:
            chat = playback.read_request(body)
        except BadChatRequest as error:
            return error_response(HTTPStatus.BAD_REQUEST, "invalid_request_error", "", message=str(error))
        headers = {name: request.headers[name] for name in _RECORDED_HEADERS if name in request.headers}
        rule, reply = self._player.choose(chat) or (0, None)
        number = self.exchanges.begin(rule=rule, body=body, headers=headers)
        outcome = Outcome.DISCONNECTED
        try:
            if reply is None:
                outcome = Outcome.NO_RULE
                message = "no [[reply]] of the script applies to this request"
                return error_response(HTTPStatus.BAD_REQUEST, "invalid_request_error", "no_rule", message=message)
            response = await Delivery(request, reply, chat, stopping=self._stopping).send()
            outcome = Outcome.FAILED if reply.fail else Outcome.ANSWERED
            return response
        except ConnectionError:
            return web.Response()  # the client has disconnected, so this is not sent
        finally:
            self.exchanges.end(number, outcome)


def _json(value: object) -> web.Response:
    """Returns a response with a JSON body."""
    return web.Response(body=orjson.dumps(value), content_type="application/json")
