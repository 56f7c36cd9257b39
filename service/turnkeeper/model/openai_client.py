"""The HTTP client of one model server: its address, its key, its connections and proxies."""

from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

import httpx2
import openai

_MOST_CONNECTIONS = 1000
"""Connections to one provider, at most."""
_IDLE_CONNECTION = timedelta(seconds=5)
"""The time after which an idle connection is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a model is, and what is special about its server."""

    base_url: str
    api_key: str
    close_connections: bool = False
    """Sends `Connection: close` with every call, for servers that drop kept-alive connections."""
    limit_field: str = ""
    """The server's name for the output limit; empty: as the address suggests."""


def new_client(provider: Provider) -> openai.AsyncOpenAI:
    """Returns a client for the provider. Raises ValueError for a bad address or key."""
    url, key = httpx2.URL(provider.base_url), provider.api_key
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("the model's address must begin with http:// or https://, then a host")
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("the model's API key is empty or holds characters that no HTTP header can carry")
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=key,
        default_headers={"Connection": "close"} if provider.close_connections else None,
        http_client=openai.DefaultAioHttpClient(
            # A proxy from the environment is not used for this machine itself.
            trust_env=not _is_loopback(url.host),
            limits=httpx2.Limits(max_connections=_MOST_CONNECTIONS, keepalive_expiry=_idle(provider).total_seconds()),
        ),
    )


def _idle(provider: Provider) -> timedelta:
    """Returns how long an idle connection is kept: `Connection: close` alone leaves the closing to the server."""
    return timedelta() if provider.close_connections else _IDLE_CONNECTION


def server_of(provider: Provider) -> tuple[str, int]:
    """Returns the host and the port of the provider's address."""
    url = httpx2.URL(provider.base_url)
    return url.host, url.port or (80 if url.scheme == "http" else 443)


def _is_loopback(host: str) -> bool:
    """Returns True if the host is this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def limit_field_of(host: str) -> str:
    """Returns the field of the output limit: OpenAI and Azure have renamed it, most others know the first name only."""
    return "max_completion_tokens" if host.endswith(("openai.com", "openai.azure.com")) else "max_tokens"
