"""Adds token and person to every call, and renews the token."""

import time
from collections.abc import Sequence
from typing import Any

import grpc

from turnkeeper_client.credentials import EARLY, ON_BEHALF_OF, Credentials, TokenSource, end_of
from turnkeeper_client.wire import (
    Interceptor,
    Lock,
    StreamInterceptor,
    UnaryInterceptor,
    token_of,
    with_metadata,
)


class Tokens:
    """The newest token of a source. It is renewed before its end, and after the service has refused it."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._token = ""
        self._ends = float("inf")
        self._renewing = Lock()

    async def get(self) -> str:
        """Returns the token. Calls that need a new one wait for one call of the source; its errors are theirs."""
        if not self._is_good():
            async with self._renewing:
                if not self._is_good():
                    self._token = await token_of(self._source())
                    self._ends = end_of(self._token)
        return self._token

    def reject(self, token: str) -> None:
        """Drops the token that the service has refused, unless there is a newer one."""
        if token == self._token:
            self._token = ""

    def _is_good(self) -> bool:
        return bool(self._token) and time.time() < self._ends - EARLY


class _Added:
    """Adds token and person to the metadata of a call."""

    def __init__(self, tokens: Tokens | None, on_behalf_of: str) -> None:
        self.tokens = tokens
        self._person = [(ON_BEHALF_OF, on_behalf_of)] if on_behalf_of else []

    async def to(self, details: Any) -> tuple[str, Any]:
        """Returns the token, and the details of the call with it."""
        token = await self.tokens.get() if self.tokens is not None else ""
        bearer = [("authorization", f"Bearer {token}")] if token else []
        return token, with_metadata(details, [*self._person, *bearer])


class _UnaryCalls(UnaryInterceptor):
    """Makes a call whose token is refused once more with a fresh one. gRPC takes one kind of call for each class."""

    def __init__(self, added: _Added) -> None:
        self._added = added

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        token, details = await self._added.to(client_call_details)
        call = await continuation(details, request)
        if self._added.tokens is None or await call.code() is not grpc.StatusCode.UNAUTHENTICATED:
            return call
        self._added.tokens.reject(token)
        _, details = await self._added.to(client_call_details)
        return await continuation(details, request)


class _StreamCalls(StreamInterceptor):
    """Streams are opened again by `streams`, which knows their cursors."""

    def __init__(self, added: _Added) -> None:
        self._added = added

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        _, details = await self._added.to(client_call_details)
        return await continuation(details, request)


def tokens_of(credentials: Credentials) -> Tokens | None:
    """Returns what keeps the newest token, or None without a source."""
    return None if credentials.token is None else Tokens(credentials.token)


def interceptors_of(credentials: Credentials, tokens: Tokens | None) -> Sequence[Interceptor]:
    """Returns what adds token and person to each call; nothing if there are none."""
    if tokens is None and not credentials.on_behalf_of:
        return []
    added = _Added(tokens, credentials.on_behalf_of)
    return [_UnaryCalls(added), _StreamCalls(added)]
