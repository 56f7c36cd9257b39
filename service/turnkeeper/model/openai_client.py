"""The HTTP client of one model server: its address, its key and headers, proxies, redirects and errors."""

import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from ipaddress import ip_address
from typing import Final

import httpx2
import openai

from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.openai_failure import status_failure
from turnkeeper.model.repeated_calls import RepeatedCalls

_MOST_CONNECTIONS: Final = 1000
"""Connections to one provider, at most."""
_IDLE_CONNECTION: Final = timedelta(seconds=5)
"""The time after which an idle connection is closed."""
_MOST_REDIRECTS: Final = 5
"""Redirects that one call follows, at most."""
_MOST_ERROR_BYTES: Final = 64 * 1024
"""Bytes that are read of an error answer; the rest is dropped with its connection."""
_SHORTEST_SECRET: Final = 8
"""Characters of the shortest key or header that is hidden in the log; a shorter one is a placeholder such as `none`."""
_ENDPOINT: Final = b"/chat/completions"
_WITH_THEIR_METHOD: Final = frozenset({307, 308})
"""Redirects that keep the method and the body of a call; after any other a browser would send GET."""
_SECRET_NAME: Final = re.compile(r"key|token|secret|password|sig", re.IGNORECASE)
"""Names of parameters in an address whose values are secrets."""
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
"""One part of a host's name."""
_LONGEST_HOST: Final = 253
_LAST_PORT: Final = 65_535
_OUR_HEADERS: Final = frozenset(
    {"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "te", "upgrade"}
    | {"accept-encoding", "expect", "trailer", "keep-alive", "proxy-connection"}
)
"""Headers that the connection depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a model is, and what is special about its server."""

    base_url: str
    """Also with a query, which each call then has: Azure's `api-version`."""
    api_key: str
    close_connections: bool = False
    """Sends `Connection: close` with every call, for servers that drop kept-alive connections."""
    limit_field: str = ""
    """The server's name for the output limit; empty: as the address suggests."""
    headers: tuple[tuple[str, str], ...] = ()
    """Headers of every call, names with values. They are not sent to another origin. An empty value: is not sent."""
    extra_body_json: str = ""
    """Fields of every request, a JSON object; empty for none."""
    omit: tuple[str, ...] = ()
    """Fields of a request that are not sent."""
    follow_redirects: bool = False
    """Follows redirects to another origin, too: with the whole conversation, but without the key and `headers`."""


def check_address(base_url: str) -> httpx2.URL:
    """Returns the address. Raises ValueError if no call can be sent to it; the message does not repeat it."""
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, ValueError, TypeError):
        raise ValueError("the model's address is no URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("the model's address must begin with http:// or https://, then a host")
    if any(not character.isprintable() or character.isspace() for character in base_url):
        raise ValueError("the model's address has a space or a control character")
    if not _is_host(url.raw_host.decode("ascii", "replace")) or not 1 <= (url.port or 1) <= _LAST_PORT:
        raise ValueError("the model's address has a host or a port that cannot be")
    if url.fragment or "#" in base_url:
        raise ValueError("the model's address has a fragment (#), which no server is sent")
    return url


def check_header(name: str, value: str) -> None:
    """Raises ValueError if no call can have the header; the message does not repeat its value."""
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("the name of a header has a character that no header's name can have")
    if name.lower() in _OUR_HEADERS:
        raise ValueError(f"the header {name} is set by the connection itself")
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"the header {name} holds characters that no HTTP header can carry")


def new_client(provider: Provider, *, connect: timedelta, now: Callable[[], datetime]) -> RepeatedCalls:
    """Returns a client for the provider; a connection is made within `connect`.

    Raises ValueError for an address, a key or a header that cannot be used.
    An error answer, and a redirect that is not followed, leave it as ModelFailure.
    """
    url, key = check_address(provider.base_url), provider.api_key
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("the model's API key is empty or holds characters that no HTTP header can carry")
    for name, value in provider.headers:
        check_header(name, value)
    headers = {name: value for name, value in provider.headers if value}
    if provider.close_connections:
        headers["Connection"] = "close"
    rules = _Exchange(provider, url, now=now)
    trusted = _trust(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    try:
        http_client = openai.DefaultAioHttpClient(
            # A proxy from the environment is not used for this machine itself.
            trust_env=not _is_loopback(url.host),
            verify=trusted,
            limits=httpx2.Limits(max_connections=_MOST_CONNECTIONS, keepalive_expiry=_idle(provider).total_seconds()),
            max_redirects=_MOST_REDIRECTS,
            event_hooks={"request": [rules.check_request], "response": [rules.check_response]},
        )
    except (ValueError, httpx2.InvalidURL):
        raise ValueError("the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is no address of a proxy") from None
    client = openai.AsyncOpenAI(
        base_url=url,
        api_key=key,
        default_headers=headers,
        http_client=http_client,
        max_retries=0,
        timeout=openai.Timeout(None, connect=connect.total_seconds()),
    )
    return RepeatedCalls(client, http_client, endpoint_of(provider))


def endpoint_of(provider: Provider) -> str:
    """Returns the URL of chat completions below the provider's address, with the address's query as it is."""
    path, mark, query = httpx2.URL(provider.base_url).raw_path.partition(b"?")
    path = path.rstrip(b"/").removesuffix(_ENDPOINT)
    return str(httpx2.URL(provider.base_url).copy_with(raw_path=path + _ENDPOINT + mark + query))


def server_of(provider: Provider) -> tuple[str, int]:
    """Returns the host and the port of the provider's address."""
    url = httpx2.URL(provider.base_url)
    return url.host, url.port or (80 if url.scheme == "http" else 443)


def limit_field_of(provider: Provider) -> str:
    """Returns the field of the output limit: OpenAI and Azure have renamed it, most others know the first name only."""
    host = httpx2.URL(provider.base_url).host
    return provider.limit_field or (
        "max_completion_tokens" if host.endswith(("openai.com", "openai.azure.com")) else "max_tokens"
    )


def secrets_of(provider: Provider) -> list[str]:
    """Returns what must not be in the log: the key, the values of the headers, and what the address holds of them."""
    url = httpx2.URL(provider.base_url)
    secrets = [provider.api_key, url.password, *(value for _, value in provider.headers)]
    secrets += [value.partition(" ")[2] for _, value in provider.headers]
    secrets += [value for name, value in url.params.multi_items() if _SECRET_NAME.search(name)]
    return [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]


class _Exchange:
    """Decides what follows from each answer of the server, and what another origin is sent."""

    def __init__(self, provider: Provider, url: httpx2.URL, *, now: Callable[[], datetime]) -> None:
        self._origin = _origin(url)
        self._headers = [name for name, _ in provider.headers]
        self._absent = [name for name, value in provider.headers if not value]
        self._anywhere = provider.follow_redirects
        self._now = now

    async def check_request(self, request: httpx2.Request) -> None:
        """Takes the headers from a call that it must not have: to another origin all of the provider's."""
        for name in self._absent if _origin(request.url) == self._origin else self._headers:
            request.headers.pop(name, None)

    async def check_response(self, response: httpx2.Response) -> None:
        """Raises ModelFailure for an error, and for a redirect that is not followed."""
        if response.status_code < 300:
            return
        if response.has_redirect_location:
            if not self._follows(response):
                raise failure(Reason.REDIRECTED, http_status=response.status_code)
            return
        body = await _start_of(response)
        raise status_failure(response.status_code, body, response.headers, now=self._now)

    def _follows(self, response: httpx2.Response) -> bool:
        """Returns True if the redirect keeps the call as it is, and its origin unless another one is allowed."""
        if response.status_code not in _WITH_THEIR_METHOD:
            return False
        try:
            target = response.url.join(response.headers["location"])
        except (httpx2.InvalidURL, ValueError):
            return False
        return target.scheme in ("http", "https") and (self._anywhere or _origin(target) == self._origin)


async def _start_of(response: httpx2.Response) -> bytes:
    """Returns the body of an error answer, cut at _MOST_ERROR_BYTES. Raises ModelFailure if it breaks off."""
    body = b""
    try:
        async for part in response.aiter_bytes():
            body += part
            if len(body) >= _MOST_ERROR_BYTES:
                break
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        raise failure(Reason.CUT, http_status=response.status_code, cause=type(error).__name__) from None
    return body[:_MOST_ERROR_BYTES]


@cache
def _trust(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    """Returns whom TLS trusts: SSL_CERT_FILE or SSL_CERT_DIR, else the system. Raises ValueError for a bad file.

    All clients share one, because reading the certificates takes long.
    """
    try:
        return httpx2.create_ssl_context()
    except (OSError, ValueError):
        raise ValueError("SSL_CERT_FILE or SSL_CERT_DIR holds no certificates that can be read") from None


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    """Returns scheme, host and port."""
    return url.scheme, url.host, url.port or (80 if url.scheme == "http" else 443)


def _idle(provider: Provider) -> timedelta:
    """Returns how long an idle connection is kept: `Connection: close` alone leaves the closing to the server."""
    return timedelta() if provider.close_connections else _IDLE_CONNECTION


def _is_host(host: str) -> bool:
    """Returns True if the host is an address, or a name that a name server may know."""
    try:
        ip_address(host.strip("[]").replace("%25", "%"))
    except ValueError:
        return len(host) <= _LONGEST_HOST and all(map(_LABEL.fullmatch, host.removesuffix(".").split(".")))
    return True


def _is_loopback(host: str) -> bool:
    """Returns True if the host is this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
