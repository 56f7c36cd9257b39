"""The tables of tool servers over gRPC, and the keys that sign their calls."""

import re
from collections.abc import Sequence
from pathlib import Path

import jwt
import pytest

from tests.tool_servers.served import a_context, a_key_file
from turnkeeper.tools import catalogue
from turnkeeper.tools.contract import ServerSource
from turnkeeper.tools.remote.table import published, source_of
from turnkeeper.tools.remote.tokens import CallTokens
from turnkeeper.watched_file import BadFile


def sources(folder: Path, text: str) -> Sequence[ServerSource]:
    content = catalogue.parse(folder / "catalogue.toml", f'[[server]]\nname = "ledger"\n{text}'.encode())
    return [source_of(server) for server in content.servers]


def test_all_keys_are_published_and_the_first_signs(tmp_path: Path) -> None:
    new, old = a_key_file(tmp_path, "new.pem"), a_key_file(tmp_path, "old.pem")
    read = sources(tmp_path, f'grpc = "ledger:443"\nkeys = ["{new}", "{old}"]')
    keys = published([*read, *read])
    assert [key["kid"] for key in keys] == [
        key["kid"] for file in (new, old) for key in CallTokens.from_files([file]).key_set()
    ]
    token = CallTokens.from_files([new, old]).of_call("ledger", "transfer", a_context())
    assert jwt.get_unverified_header(token)["kid"] == keys[0]["kid"]
    claims = jwt.decode(token, jwt.PyJWK(dict(keys[0])), algorithms=["EdDSA"], audience="ledger")
    assert (claims["tool"], claims["exp"] - claims["iat"]) == ("transfer", 60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('grpc = "ledger"', "server.0.grpc"),
        ('grpc = "http://ledger:443"', "server.0.grpc"),
        ('grpc = "ledger:443"\nport = 5', "there is no such key"),
        ('grpc = "ledger:443"\nplaintext = true\nca = "ca.pem"', "no meaning"),
        ('grpc = "ledger:443"\nca = "absent.pem"', "cannot be read"),
        ('grpc = "ledger:443"\nkeys = ["absent.pem"]', "cannot be read"),
        ('grpc = "ledger:443"\nkeys = ["catalogue.toml"]', "openssl genpkey"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catalogue.toml").write_text("no key")
    with pytest.raises(BadFile, match=re.escape(words)) as refusal:
        sources(tmp_path, text)
    assert "catalogue.toml:" in str(refusal.value)


def test_a_server_without_keys_signs_with_one_of_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (source,) = sources(tmp_path, 'grpc = "127.0.0.1:50061"\nplaintext = true')
    assert len(published([source])) == 1
    assert "no other replica has" in caplog.text
