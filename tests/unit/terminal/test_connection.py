"""The connection of a command: a flag wins over a variable, that over a profile; mistakes name their place."""

from pathlib import Path

import pytest

from turnkeeper.start_errors import SettingError
from turnkeeper.terminal.connection import ADDRESS, NAMES, ConnectionOptions, typed_flags

PROFILES = """\
default = "near"

[profile.near]
address = "127.0.0.1:7"

[profile.far]
address = "turnkeeper.example:443"
token_file = "token"
tls_ca = "/etc/ca.pem"
"""


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "profile.toml"
    monkeypatch.setenv("TURNKEEPER_CLIENT_PROFILES", str(file))
    return file


def test_without_anything_it_is_the_server_of_this_machine(profiles: Path) -> None:
    assert ConnectionOptions.chosen({}) == ConnectionOptions(address=ADDRESS)


def test_the_file_is_looked_for_where_settings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TURNKEEPER_CLIENT_PROFILES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "turnkeeper").mkdir()
    (tmp_path / "turnkeeper/profile.toml").write_text(PROFILES)
    assert ConnectionOptions.chosen({}).address == "127.0.0.1:7"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ConnectionOptions.chosen({}).address == ADDRESS


def test_what_is_given_wins_and_the_profile_completes_it(profiles: Path) -> None:
    profiles.write_text(PROFILES)
    assert ConnectionOptions.chosen({"address": ""}).address == "127.0.0.1:7"
    chosen = ConnectionOptions.chosen({"address": "localhost:1", "tls_ca": None}, profile="far")
    assert chosen == ConnectionOptions(
        address="localhost:1", token_file=profiles.parent / "token", tls_ca=Path("/etc/ca.pem")
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[profile.near", ":1: this is not TOML"),
        ('[profile.near]\nadress = "x"', ":2: there is no key 'adress'; did you mean address?"),
        ("[profile.near]\naddress = 5", ":2: address must be text in quotes"),
        ("profile = 5", ":1: profile must be tables such as [profile.local]"),
        ("[profile]\nnear = 5", ":2: near must be a table such as [profile.local]"),
        ("default = 5", ":1: default must be the name of a profile in quotes"),
        ("[profil.near]", ":1: there is no key 'profil'; did you mean profile?"),
        ("[profile.far]", "has no profile 'near'; it has far. Add [profile.near] to it"),
    ],
)
def test_a_mistake_in_the_file_names_its_line(profiles: Path, text: str, reason: str) -> None:
    profiles.write_text(text)
    with pytest.raises(SettingError) as raised:
        ConnectionOptions.chosen({}, profile="near")
    assert str(profiles) in str(raised.value)
    assert reason in str(raised.value)


def test_a_profile_needs_its_file(profiles: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        ConnectionOptions.chosen({}, profile="near")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"address": "http://127.0.0.1:50051"}, "--address is http://127.0.0.1:50051; write it without http://"),
        ({"token_file": "nowhere"}, "--token-file names nowhere, which cannot be read: No such file"),
        ({"tls_ca": "/dev/null"}, "--tls-ca names /dev/null, which is empty"),
        ({"tls_ca": "/dev/zero"}, "or has more than 65,536 bytes"),
        ({"tls_key": __file__}, "--tls-certificate and --tls-key belong together"),
        ({"address": "far.example:1", "token_file": __file__}, "a token in plain text can be read on its way"),
    ],
)
async def test_a_connection_that_cannot_be_opened(profiles: Path, given: dict[str, str], reason: str) -> None:
    with pytest.raises(SettingError) as raised:
        ConnectionOptions.chosen(given).open()
    assert reason in str(raised.value)


def test_the_flags_are_those_of_the_connection() -> None:
    assert NAMES == ("address", "token_file", "tls_ca", "tls_certificate", "tls_key")


def test_a_printed_command_has_the_flags_that_the_reader_typed() -> None:
    given = {"address": "127.0.0.1:7", "token_file": "my token", "tls_ca": None, "profile": "far"}
    environ = {"TURNKEEPER_CLIENT_PROFILE": "far"}
    assert typed_flags(given, environ) == " --address 127.0.0.1:7 --token-file 'my token'"
    assert typed_flags({"address": ADDRESS}, {}) == ""
    assert typed_flags({"address": ADDRESS}, {"TURNKEEPER_CLIENT_ADDRESS": "a:1"}) == f" --address {ADDRESS}"
