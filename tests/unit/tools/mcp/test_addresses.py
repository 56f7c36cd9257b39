"""Which addresses a tool server may have, however they are written."""

import pytest

from tests.name_service import answer_names
from turnkeeper.tools.mcp.addresses import check, resolve
from turnkeeper.tools.mcp.link import CannotOpen

PRIVATE = (
    *("127.0.0.1", "127.8.9.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1"),
    *("::1", "fd00::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::a00:1"),
)
NEVER = (
    *("0.0.0.0", "169.254.169.254", "169.254.1.1", "224.0.0.1", "100.100.100.200"),
    *("::", "fe80::1", "fe80::1%eth0", "ff02::1", "fd00:ec2::254"),
    *("::ffff:0.0.0.0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"),
)
PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    check(address, host="h", allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_allowed_where_the_server_states_it(address: str) -> None:
    with pytest.raises(CannotOpen, match="allow_private = true"):
        check(address, host="h", allow_private=False)
    check(address, host="h", allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_never_allowed(address: str) -> None:
    for allow_private in (False, True):
        with pytest.raises(CannotOpen, match="where no tool server may be"):
            check(address, host="h", allow_private=allow_private)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost"])
async def test_an_address_in_another_form_is_checked_as_what_it_is(host: str) -> None:
    with pytest.raises(CannotOpen, match="private address"):
        await resolve(host, 80, allow_private=False)
    assert "127.0.0.1" in await resolve(host, 80, allow_private=True)


@pytest.mark.parametrize("host", ["0", "0.0.0.0", "2852039166", "0xa9fea9fe"])
async def test_an_address_in_another_form_is_refused_as_what_it_is(host: str) -> None:
    with pytest.raises(CannotOpen, match="where no tool server may be"):
        await resolve(host, 80, allow_private=True)


async def test_one_private_address_among_others_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_names(monkeypatch, lambda _: ("8.8.8.8", "10.0.0.1"))
    with pytest.raises(CannotOpen, match=r"tools\.test is at 10\.0\.0\.1, a private address"):
        await resolve("tools.test", 80, allow_private=False)


@pytest.mark.parametrize("host", ["no-such-name.invalid", "a" * 300, "\udc80"])
async def test_a_name_that_does_not_resolve_is_an_error_with_words(host: str) -> None:
    with pytest.raises(CannotOpen, match="does not resolve"):
        await resolve(host, 80, allow_private=True)
