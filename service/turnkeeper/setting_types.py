"""The types of settings: what each can be, and the sentence that is shown for a value that it cannot be."""

import ipaddress
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, InstanceOf
from pydantic_core import PydanticCustomError

from turnkeeper import durations, peer_list, sizes
from turnkeeper.peer_list import PeerList
from turnkeeper.sizes import Size

LAST_PORT: Final = 65_535
SHORTEST: Final = timedelta(milliseconds=1)
LONGEST: Final = timedelta(days=36_525)
"""A hundred years: dates that far away can still be stored."""
LONGEST_OPERATION: Final = timedelta(hours=1)
LONGEST_DELTA_INTERVAL: Final = timedelta(seconds=10)
MOST_PROCESSES: Final = 1_024
MOST_TURNS: Final = 100_000
LEAST_MEMORY: Final = Size(256 << 20)
MEMORY_SHARE: Final = 0.5
"""Of the memory of the machine, or of its control group: the rest is for the database, tools and files."""
UNREADABLE: Final = "unreadable"
"""The type of the error of a value that is not of its kind; the error's context has what is `expected`."""
TOGETHER: Final = "together"
"""The type of the error of a value that does not fit another one; the error's context has its `name` and `limit`."""
ALGORITHMS: Final = ("ES256", "ES384", "ES512", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
"""The algorithms that tokens may be signed with. All have a public key: none and HS256 cannot be allowed."""
LOOPBACK: Final = "127.0.0.1"
UNIX: Final = "unix:"
"""What the host of a Unix socket begins with."""
_SOCKET_BYTES: Final = 107
"""Bytes of the path of a Unix socket, at most, on Linux."""
_DATABASE_BYTES: Final = 63

T = TypeVar("T")


def _read(kind: type, parse: Callable[[str], object], expected: str) -> BeforeValidator:
    """Returns a validator that passes values of `kind` and parses text. Other values are UNREADABLE."""

    def read(value: object) -> object:
        if type(value) is kind:
            return value
        try:
            if isinstance(value, str):
                return parse(value)
        except (ValueError, KeyError):
            pass
        raise PydanticCustomError(UNREADABLE, "must be {expected}", {"expected": expected})

    return BeforeValidator(read)


def _check(holds: Callable[[T], bool], limit: str) -> AfterValidator:
    """Returns a validator that raises ValueError with `limit` for a value for which `holds` is false."""

    def check(value: T) -> T:
        if not holds(value):
            raise ValueError(f"must {limit}")
        return value

    return AfterValidator(check)


def _path(value: object) -> object:
    """Returns the path. Raises ValueError for an empty text, which would name the working directory."""
    if value == "":
        raise ValueError("must not be empty")
    return value


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.strip().lower()]


def _is_text(value: str) -> bool:
    """Returns False for what no other program can read: a byte that is not UTF-8 is half a character here."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _names_a_database(value: str) -> bool:
    return len(value.encode()) <= _DATABASE_BYTES and not set(value) & set(' ."$/\\')


def _is_address(host: str) -> bool:
    """Returns False for a host that has a port, and for a path that a Unix socket cannot have."""
    if host.startswith(UNIX):
        return len(UNIX) < len(host.encode()) <= len(UNIX) + _SOCKET_BYTES
    if ":" not in host:
        return not set(host) & set(" /[]")
    try:
        return ipaddress.ip_address(host.strip("[]")).version == 6
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Returns True if only programs of this machine can connect: loopback, and Unix sockets."""
    return host.startswith(UNIX) or _is_loopback(host)


def is_plain_http(place: str) -> bool:
    """Returns True if the place is a URL of another machine whose content anybody on the way can replace."""
    url = urlsplit(place)
    return url.scheme == "http" and not _is_loopback(url.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    """Returns the host as it stands before a port."""
    return f"[{host}]" if ":" in host and not host.startswith(("[", UNIX)) else host


def _names_algorithms(text: str) -> bool:
    names = [name.strip() for name in text.split(",")]
    return bool(names) and set(names) <= set(ALGORITHMS)


def _names_keys(text: str) -> bool:
    """Returns False for a URL without a host; anything that is not a URL is a file."""
    try:
        return not text.startswith(("http:", "https:")) or bool(urlsplit(text).hostname)
    except ValueError:
        return False


def _names_peers(text: str) -> bool:
    try:
        PeerList.parse(text)
    except ValueError:
        return False
    return True


def _from(least: int, most: int) -> AfterValidator:
    def holds(count: int) -> bool:
        return least <= count <= most

    return _check(holds, f"be from {least} to {most}")


_WHOLE_NUMBER = _read(int, int, "a whole number")
_DURATION = _read(timedelta, durations.parse, f"a duration such as {durations.EXAMPLES}")
_SIZE = _read(Size, Size.parse, f"a size such as {sizes.EXAMPLES}")
_TEXT = _check(_is_text, "be UTF-8 text without NUL characters")

Text = Annotated[str, _TEXT]
Name = Annotated[str, _TEXT, _check(bool, "not be empty")]
Host = Annotated[
    Name,
    _check(_is_address, "be a host name, an IP address, or unix: and a path of at most 107 bytes"),
    AfterValidator(_bracketed),
]
Algorithms = Annotated[Text, _check(_names_algorithms, f"be names with commas, of {', '.join(ALGORITHMS)}")]
KeysPlace = Annotated[Text, _check(_names_keys, "be a file, or a URL such as https://issuer.example.com/keys")]
Peers = Annotated[Text, _check(_names_peers, f"be a list with commas of {peer_list.EXPECTED}")]
DatabaseName = Annotated[
    Name,
    _check(_names_a_database, f'be at most {_DATABASE_BYTES} bytes without spaces, and without any of . " $ / \\'),
    _check(lambda name: name not in {"admin", "config", "local"}, "not be admin, config or local"),
]
FilePath = Annotated[
    Path, BeforeValidator(_path), _check(lambda path: "\0" not in str(path), "be text without NUL characters")
]
Switch = Annotated[bool, _read(bool, _switch, "true or false")]
Processes = Annotated[int, _WHOLE_NUMBER, _from(1, MOST_PROCESSES)]
Turns = Annotated[int, _WHOLE_NUMBER, _from(1, MOST_TURNS)]
Memory = Annotated[InstanceOf[Size], _SIZE, _check(lambda size: size >= LEAST_MEMORY, f"be at least {LEAST_MEMORY}")]
Port = Annotated[int, _WHOLE_NUMBER, _from(0, LAST_PORT)]
Duration = Annotated[timedelta, _DURATION, _check(lambda duration: duration <= LONGEST, "be at most 36525d")]
PositiveDuration = Annotated[
    timedelta, _DURATION, _check(lambda duration: SHORTEST <= duration <= LONGEST, "be from 1ms to 36525d")
]
DeltaInterval = Annotated[
    timedelta, _DURATION, _check(lambda duration: duration <= LONGEST_DELTA_INTERVAL, "be at most 10s")
]
OperationTime = Annotated[
    timedelta, _DURATION, _check(lambda duration: SHORTEST <= duration <= LONGEST_OPERATION, "be from 1ms to 60m")
]
