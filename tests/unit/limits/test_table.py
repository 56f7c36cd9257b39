"""The limits file: what it can say, and how a mistake in it is named."""

from pathlib import Path

import pytest

from turnkeeper.limits.bucket import CallRate
from turnkeeper.limits.profile import DEFAULT, SMALL_TENANT, Cap, Scope
from turnkeeper.limits.table import MAX_BYTES, LimitTable, parse
from turnkeeper.watched_file import BadFile

FILE = Path("limits.toml")
METHODS = ("SendMessage", "StreamMessage", "GetSession", "CreateSession")
FULL = """
mode = "shadow"
profile = "small-tenant"

[profiles.large]
streams = 5000
turns_under_way = 64
turns_queued = "unlimited"

[profiles.large.principal]
SendMessage = { per_minute = 6000, burst = 50 }
reads = "unlimited"

[profiles.large.tenant]
messages = 60000

[profiles.larger]
based_on = "large"
waits = 7

[tenants]
acme = "large"
zoo = "larger"
plain = "default"
"""


def table_of(text: str) -> LimitTable:
    return parse(FILE, text.encode(), methods=METHODS)


def test_an_empty_file_is_the_default_profile_for_all() -> None:
    assert table_of("") == LimitTable(is_shadow=False, others=DEFAULT, tenants={})


def test_a_file_with_every_key() -> None:
    table = table_of(FULL)
    assert table.is_shadow
    assert table.of("anybody") == SMALL_TENANT
    assert table.of("plain") == DEFAULT
    acme, zoo = table.of("acme"), table.of("zoo")
    assert acme.caps == {Cap.STREAMS: 5000, Cap.TURNS_UNDER_WAY: 64}
    assert acme.rates[Scope.PRINCIPAL, "SendMessage"] == CallRate(6000, 50)
    assert acme.rates[Scope.PRINCIPAL, "StreamMessage"] == CallRate(1200, 120)
    assert acme.rates[Scope.TENANT, "messages"] == CallRate(60000, 6000)
    assert (Scope.PRINCIPAL, "reads") not in acme.rates
    assert zoo.rates == acme.rates
    assert zoo.caps == {**acme.caps, Cap.WAITS: 7}


PROFILE = "[profiles.x]\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("mode = 'off'", 1, "mode: "),
        ("modes = 'shadow'", 1, "modes: "),
        ("mode = ", 1, "this is not TOML"),
        ("profile = 'big'", 1, "profile: there is no profile big"),
        ("[tenants]\na = 'big'", 2, "tenants.a: there is no profile big"),
        ("[tenants]\n'a b' = 'default'", 2, "a b"),
        ("[profiles.default]\nstreams = 5", 1, "profiles.default: is built in"),
        (PROFILE + "based_on = 'y'", 2, "profiles.x.based_on: there is no profile y before this line"),
        (PROFILE + "streams = 0", 2, "profiles.x.streams"),
        (PROFILE + "streams = -1", 2, "profiles.x.streams"),
        (PROFILE + "streams = true", 2, "profiles.x.streams"),
        (PROFILE + "streams = 1.5", 2, "profiles.x.streams"),
        (PROFILE + "[profiles.x.principal]\nSendMessages = 5", 3, "must be the name of a method, or one of creates"),
        (PROFILE + "[profiles.x.principal]\nreads = 0", 3, "profiles.x.principal.reads"),
        (PROFILE + "[profiles.x.principal]\nreads = '60'", 3, "profiles.x.principal.reads"),
        (PROFILE + "[profiles.x.tenant]\nreads = { per_minute = 5 }", 3, "burst"),
        (PROFILE + "[profiles.x.tenant]\nreads = { per_minute = 5, burst = 99999999 }", 3, "burst"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(BadFile) as bad:
        table_of(text)
    assert str(bad.value).startswith(f"limits.toml:{line}: ")
    assert says in str(bad.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(BadFile, match="UTF-8"):
        parse(FILE, b"\xff\xfe", methods=METHODS)
    assert MAX_BYTES >= 1 << 20
