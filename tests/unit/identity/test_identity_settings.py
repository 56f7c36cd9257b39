"""The settings of identity and of TLS: which ones fit each other, and what is said about the others."""

from datetime import timedelta

import pytest

from tests.unit.test_settings import load
from turnkeeper.start_errors import SettingError

TLS = ("--tls-certificate", "c", "--tls-key", "k")
MTLS = ("--identity", "mtls", "--principals", "p", *TLS, "--tls-client-ca", "ca")
TOKENS = ("--jwt-issuer", "i", "--jwt-audience", "a", "--jwt-keys", "k")
JWT = ("--identity", "jwt", "--principals", "p", *TOKENS)
BOTH = ("--identity", "mtls+jwt", *MTLS[2:], *TOKENS)
FORWARDED = ("--identity", "forwarded", "--principals", "p")


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--host", "unix:/run/t.sock"], "host", "unix:/run/t.sock"),
        (["--host", "0.0.0.0", "--trust-network"], "host", "0.0.0.0"),
        ([*MTLS, "--host", "::"], "host", "[::]"),
        ([*JWT, *TLS, "--host", "0.0.0.0"], "host", "0.0.0.0"),
        ([*JWT, "--host", "0.0.0.0", "--trust-network"], "host", "0.0.0.0"),
        ([*JWT, "--host", "unix:/s"], "host", "unix:/s"),
        (["--heartbeat", "1h"], "heartbeat", timedelta(hours=1)),
        ([*JWT, "--jwt-keys", "http://127.0.0.1:1/keys"], "jwt_keys", "http://127.0.0.1:1/keys"),
        ([*JWT, "--jwt-algorithms", "RS256, EdDSA"], "algorithms", ["RS256", "EdDSA"]),
        ([*BOTH, "--trusted-peers", "spiffe://a/b"], "trusted_peers", "spiffe://a/b"),
        ([*FORWARDED, "--trusted-peers", "unix,fd00::/8", "--host", "0.0.0.0"], "host", "0.0.0.0"),
    ],
)
def test_settings_that_fit(flags: list[str], name: str, value: object) -> None:
    assert getattr(load(*flags), name) == value


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--host", "127.0.0.1:80"], "--host must be a host name, an IP address, or unix: and a path"),
        (["--host", "unix:"], "--host must be a host name, an IP address, or unix: and a path"),
        (["--host", "unix:/" + "x" * 107], "--host must be a host name, an IP address, or unix: and a path"),
        (["--host", "a/b"], "--host must be a host name, an IP address, or unix: and a path"),
        (["--host", "unix:/s", "--processes", "2"], "--host must have a port with --processes"),
        (["--identity", "mtls", *TLS, "--tls-client-ca", "c"], "--identity mtls needs --principals"),
        ([*MTLS[:4]], "--identity mtls needs --tls-certificate, --tls-key and --tls-client-ca"),
        ([*JWT[:4], "--jwt-issuer", "i"], "--identity jwt needs --jwt-issuer, --jwt-audience and --jwt-keys"),
        ([*JWT, "--host", "0.0.0.0"], "--host must be a loopback address such as 127.0.0.1, or unix:PATH: without TLS"),
        ([*JWT, "--jwt-keys", "http://keys.example.com/"], "--jwt-keys must be an https URL, a file, or on loopback"),
        ([*JWT, "--jwt-keys", "http://[::1"], "--jwt-keys must be a file, or a URL such as https://"),
        ([*JWT, "--jwt-keys", "https:///keys"], "--jwt-keys must be a file, or a URL such as https://"),
        ([*JWT, "--jwt-algorithms", "RS256,none"], "--jwt-algorithms must be names with commas, of ES256, "),
        ([*JWT, "--jwt-algorithms", "HS256"], "--jwt-algorithms must be names with commas, of ES256, "),
        ([*JWT, "--jwt-algorithms", ""], "--jwt-algorithms must be names with commas, of ES256, "),
        ([*JWT, *TLS, "--tls-client-ca", "ca"], "--tls-client-ca needs --tls-certificate, and --identity mtls"),
        (["--tls-key", "k"], "--tls-key needs the other of --tls-certificate and --tls-key"),
        (["--tls-certificate", "c"], "--tls-certificate needs the other of --tls-certificate and --tls-key"),
        ([*JWT, "--heartbeat", "61s"], "--heartbeat must be at most 60s with --identity jwt: at a keep-alive"),
        ([*BOTH], "--identity mtls+jwt needs --trusted-peers"),
        ([*BOTH, "--trusted-peers", "unix"], "--trusted-peers must have SPIFFE ids with --identity mtls+jwt"),
        ([*FORWARDED], "--identity forwarded needs --trusted-peers"),
        ([*FORWARDED, "--trusted-peers", "spiffe://a/b"], "--trusted-peers needs --tls-client-ca for SPIFFE ids"),
        (
            [*FORWARDED, "--trusted-peers", "10.0.0.1/8"],
            "--trusted-peers must be a list with commas of unix, a network",
        ),
    ],
)
def test_settings_that_do_not_fit(flags: list[str], complaint: str) -> None:
    with pytest.raises(SettingError) as raised:
        load(*flags)
    assert complaint in str(raised.value)
