"""What a client calls with: TLS, a token that is renewed, and the person on whose behalf it calls."""

import asyncio
import base64
import inspect
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

# Returns a token. It may return it at once, or be a coroutine function.
TokenSource = Callable[[], str | Awaitable[str]]
Pem = bytes | Path
Metadata = Sequence[tuple[str, str]]

ON_BEHALF_OF = "turnkeeper-on-behalf-of"
# Seconds before its end from which on a token is no longer used, if it is a JWT that tells its end.
EARLY = 30.0


class Tokens:
    """The newest token of a source. It is renewed before its end, and after the service has refused it."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._token = ""
        self._ends = float("inf")
        self._renewing = asyncio.Lock()

    async def get(self) -> str:
        """Returns the token. Calls that need a new one wait for one call of the source; its errors are theirs."""
        if not self._is_good():
            async with self._renewing:
                if not self._is_good():
                    token = self._source()
                    self._token = await token if inspect.isawaitable(token) else token
                    self._ends = end_of(self._token)
        return self._token

    def reject(self, token: str) -> None:
        """Drops the token that the service has refused, unless there is a newer one."""
        if token == self._token:
            self._token = ""

    def _is_good(self) -> bool:
        return bool(self._token) and time.time() < self._ends - EARLY


def end_of(token: str) -> float:
    """Returns the `exp` of a JWT, in seconds since the epoch; infinity if it is another kind of token.

    A token that is about to end as it comes is used as long as the service takes it.
    """
    try:
        payload = token.split(".")[1]
        end = float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (ValueError, LookupError, TypeError):
        return float("inf")
    return end if end > time.time() + EARLY else float("inf")


class _Added:
    """Adds token and person to the metadata of a call."""

    def __init__(self, tokens: Tokens | None, on_behalf_of: str) -> None:
        self.tokens = tokens
        self._person: Metadata = [(ON_BEHALF_OF, on_behalf_of)] if on_behalf_of else []

    async def to(self, details: Any) -> tuple[str, aio.ClientCallDetails]:
        """Returns the token, and the details of the call with it."""
        token = await self.tokens.get() if self.tokens is not None else ""
        added = [*self._person, *([("authorization", f"Bearer {token}")] if token else [])]
        metadata = aio.Metadata(*(details.metadata or ()), *added)
        return token, aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryCalls(aio.UnaryUnaryClientInterceptor):
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


class _StreamCalls(aio.UnaryStreamClientInterceptor):
    """Streams are opened again by `streams`, which knows their cursors."""

    def __init__(self, added: _Added) -> None:
        self._added = added

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        _, details = await self._added.to(client_call_details)
        return await continuation(details, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client calls with.

    `ca`, `certificate` and `key`: PEM, as bytes or as a path that is read once. With a CA or a certificate the
    connection has TLS; without a CA the system's count. `token`: called for a token, again before that ends, and once
    when the service has refused it. `on_behalf_of`: the person for whom a delegate calls.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    token: TokenSource | None = None
    on_behalf_of: str = ""

    def tls(self) -> grpc.ChannelCredentials | None:
        """Returns the credentials of a channel, or None for plain text."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or none")
        if self.ca is None and self.certificate is None:
            return None
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))

    def tokens(self) -> Tokens | None:
        """Returns what keeps the newest token, or None without a source."""
        return None if self.token is None else Tokens(self.token)

    def interceptors(self, tokens: Tokens | None) -> Sequence[aio.ClientInterceptor]:
        """Returns what adds token and person to each call; nothing if there are none."""
        if tokens is None and not self.on_behalf_of:
            return []
        added = _Added(tokens, self.on_behalf_of)
        return [_UnaryCalls(added), _StreamCalls(added)]


def is_local(target: str) -> bool:
    """Returns True if what is sent to the target stays on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = target.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:")
    return all(map(_is_loopback, addresses.split(",")))


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _read(pem: Pem | None) -> bytes | None:
    return pem.read_bytes() if isinstance(pem, Path) else pem
