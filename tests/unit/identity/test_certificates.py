"""Certificates of peers, and what proxies forward of those of others."""

import contextlib
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.calls import Call, certificate
from turnkeeper import dev_credentials
from turnkeeper.dev_credentials import Authority, spiffe_id
from turnkeeper.errors import Unauthenticated
from turnkeeper.identity.certificates import Certificates
from turnkeeper.identity.credential import Authenticator, CredentialKind
from turnkeeper.identity.forwarded import MOST_BYTES, Forwarded, last_element
from turnkeeper.peer_list import PeerList

AUTHORITY = Authority.new()
XFCC = "x-forwarded-client-cert"
FROM_LOOPBACK = PeerList.parse("127.0.0.0/8")


async def reason_of(authenticator: Authenticator, call: Call) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await authenticator.credential(call)
    return refused.value.metadata["reason"]


async def test_a_certificate_names_its_spiffe_id_or_else_its_subject() -> None:
    named, _ = certificate(AUTHORITY, "ada")
    credential = await Certificates().credential(Call(certificate=named))
    assert (credential.kind, credential.id) == (CredentialKind.CERTIFICATE, spiffe_id("ada"))
    assert credential.expires_at is not None
    plain, _ = certificate(AUTHORITY, "ada", uris=[])
    assert (await Certificates().credential(Call(certificate=plain))).id == "CN=ada"
    another, _ = certificate(AUTHORITY, "ada", uris=["https://ada.invalid"])
    assert (await Certificates().credential(Call(certificate=another))).id == "CN=ada"


async def test_bad_certificates() -> None:
    """A handshake lets none of them pass; a connection may outlast its certificate."""
    assert await reason_of(Certificates(), Call()) == "MISSING"
    expired, _ = certificate(AUTHORITY, "ada", lifetime=timedelta(seconds=-1))
    assert await reason_of(Certificates(), Call(certificate=expired)) == "EXPIRED"
    for uris in ([spiffe_id("ada"), spiffe_id("eve")], [spiffe_id("ada"), "https://ada.invalid"]):
        several, _ = certificate(AUTHORITY, "ada", uris=uris)
        assert await reason_of(Certificates(), Call(certificate=several)) == "MALFORMED"
    assert await reason_of(Certificates(), Call(certificate=b"not PEM")) == "MALFORMED"
    assert await reason_of(Certificates(), Call(certificate=certificate(AUTHORITY, "a\nb", uris=[])[0])) == "MALFORMED"


async def test_a_certificate_with_a_name_that_the_library_does_not_know_is_malformed() -> None:
    """An X.400 address: the handshake lets it pass, and the library raises an error that is no ValueError."""
    builder = dev_credentials._builder(  # noqa: SLF001 - as the authority does, but for the name
        x509.Name([]), AUTHORITY.certificate.subject, AUTHORITY.key, timedelta(days=1)
    )
    unknown = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes.fromhex("3004a3023000"))
    pem = builder.add_extension(unknown, critical=False).sign(AUTHORITY.key, hashes.SHA256()).public_bytes(Encoding.PEM)
    assert await reason_of(Certificates(), Call(certificate=pem)) == "MALFORMED"


@pytest.mark.parametrize(
    ("value", "id_"),
    [
        ("URI=spiffe://a/ada", "spiffe://a/ada"),
        ('By=spiffe://a/me;Hash=0a;Subject="CN=ada";URI=spiffe://a/ada', "spiffe://a/ada"),
        ("URI=spiffe://a/forged,URI=spiffe://a/ada", "spiffe://a/ada"),
        ("URI=spiffe://a/forged, By=x;uri=spiffe://a/ada", "spiffe://a/ada"),
        ('Subject="CN=ada,O=\\"Lace\\", Inc;x"', 'CN=ada,O="Lace", Inc;x'),
        ('Subject="CN=eve,URI=spiffe://a/forged";URI=spiffe://a/ada', "spiffe://a/ada"),
        ('Hash=0a;Subject="";URI=spiffe://a/ada;DNS=ada.invalid;DNS=b.invalid', "spiffe://a/ada"),
        ('Subject="CN=ada";URI=', "CN=ada"),
        ('Subject="CN=ada";URI=https://ada.invalid', "CN=ada"),
    ],
)
async def test_the_last_element_counts(value: str, id_: str) -> None:
    credential = await Forwarded(FROM_LOOPBACK).credential(Call([(XFCC, value)]))
    assert (credential.kind, credential.id, credential.expires_at) == (CredentialKind.CERTIFICATE, id_, None)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "spiffe://a/ada",
        "URI=spiffe://a/ada,",
        "URI=spiffe://a/ada;",
        ",URI=spiffe://a/ada",
        "By=x;Hash=0a",
        "URI=spiffe://a/ada;URI=spiffe://a/eve",
        "URI=spiffe://a/ada;URI=https://ada.invalid",
        'Subject="CN=ada";Subject="CN=eve"',
        'URI="spiffe://a/ada',
        'Subject="CN=ada\u0085"',
        'URI=spi"ffe://a/ada',
        'URI="spiffe://a/ada"x',
        'URI="spiffe://a/ada"xBy=b',
        'URI="spiffe://a/forged,By=x;Subject="CN=ada";URI=spiffe://a/ada',
        'URI=",By=x;Subject="";URI=spiffe://a/ada',
        'URI="spiffe://a/forged\\,URI=spiffe://a/ada',
        "URI=spiffe://a/forged\\,URI=spiffe://a/ada",
        "URI=spiffe://a/ada" + " " * MOST_BYTES,
    ],
)
async def test_what_cannot_be_read_is_refused(value: str) -> None:
    assert await reason_of(Forwarded(FROM_LOOPBACK), Call([(XFCC, value)])) == "MALFORMED"


@given(st.text(alphabet='aU=";,\\ \nR', max_size=60))
async def test_no_value_is_an_error_of_another_kind(value: str) -> None:
    with contextlib.suppress(Unauthenticated):
        assert (await Forwarded(FROM_LOOPBACK).credential(Call([(XFCC, value)]))).id


async def test_a_missing_and_a_repeated_header() -> None:
    assert await reason_of(Forwarded(FROM_LOOPBACK), Call()) == "MISSING"
    twice = [(XFCC, "URI=spiffe://a/ada"), (XFCC, "URI=spiffe://a/eve")]
    assert await reason_of(Forwarded(FROM_LOOPBACK), Call(twice)) == "SEVERAL"


def test_a_long_value_is_read_in_a_moment() -> None:
    """Each character is looked at a few times, and no more."""
    value = 'Subject="' + "\\\\" * (MOST_BYTES // 2 - 40) + '";URI=spiffe://a/ada'
    assert last_element(value)["uri"] == ["spiffe://a/ada"]
    with pytest.raises(Unauthenticated):
        last_element('Subject="' + "\\a" * (MOST_BYTES // 2 - 40))


@pytest.mark.parametrize(
    ("peers", "address", "is_listed"),
    [
        ("unix", "unix:", True),
        ("unix", "unix:/run/proxy.sock", True),
        ("10.0.0.0/8", "unix:", False),
        ("unix", "ipv4:127.0.0.1:1", False),
        ("10.0.0.0/8", "ipv4:10.1.2.3:50051", True),
        ("10.0.0.0/8", "ipv4:11.1.2.3:50051", False),
        ("10.0.0.0/8", "ipv6:%5B::ffff:10.1.2.3%5D:50051", True),
        ("fd00::/8, 10.0.0.1", "ipv6:%5Bfd00::1%5D:50051", True),
        ("fd00::/8, 10.0.0.1", "ipv6:[fd00::1]:50051", True),
        ("fd00::/8, 10.0.0.1", "ipv4:10.0.0.1:1", True),
        ("fd00::/8, 10.0.0.1", "ipv4:10.0.0.2:1", False),
        ("10.0.0.0/8", "", False),
        ("10.0.0.0/8", "unknown", False),
    ],
)
async def test_listed_addresses(peers: str, address: str, is_listed: bool) -> None:
    authenticator = Forwarded(PeerList.parse(peers))
    call = Call([(XFCC, "URI=spiffe://a/ada")], address=address)
    if is_listed:
        assert (await authenticator.credential(call)).id == "spiffe://a/ada"
    else:
        assert await reason_of(authenticator, call) == "UNLISTED_PEER"


async def test_a_listed_certificate_may_forward_and_another_may_not() -> None:
    authenticator = Forwarded(PeerList.parse(spiffe_id("gateway")))
    for name, lifetime, reason in (
        ("gateway", 1, ""),
        ("ada", 1, "UNLISTED_PEER"),
        ("gateway", -1, "UNLISTED_PEER"),
    ):
        pem, _ = certificate(AUTHORITY, name, lifetime=timedelta(seconds=lifetime * 60))
        call = Call([(XFCC, "URI=spiffe://a/ada")], certificate=pem)
        if reason:
            assert await reason_of(authenticator, call) == reason
        else:
            assert (await authenticator.credential(call)).id == "spiffe://a/ada"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "all", "unix:/run/proxy.sock", "10.0.0.0/33", "http://a"])
def test_a_list_of_peers_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"network|host bits"):
        PeerList.parse(text)
