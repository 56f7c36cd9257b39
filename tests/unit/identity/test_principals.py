"""The principals file: rows by certificate, subject and claims; and what is wrong with a bad one, with its line."""

from pathlib import Path

import pytest

from turnkeeper.errors import PermissionDenied, PrincipalUnknown
from turnkeeper.identity.caller import DEFAULT_CALLER, AccessRole, Caller
from turnkeeper.identity.credential import NO_CREDENTIAL, Credential, CredentialKind
from turnkeeper.identity.principals import MAX_GROUPS, Principals
from turnkeeper.watched_file import BadFile

ISSUER = "https://login.example"
FILE = f"""
[[principal]]
name = "anna"
tenant = "acme"
roles = ["caller", "approver", "operator"]
groups = ["finance"]
certificates = ["spiffe://acme.example/anna"]
tokens = [{{ issuer = "{ISSUER}", subject = "a1" }}]

[[principal]]
name = "finance-bot"
tenant = "acme"
roles = ["caller"]
tokens = [{{ issuer = "{ISSUER}", claims = {{ team = "finance", env = "prod" }} }}]

[[principal]]
name = "portal"
tenant = "acme"
roles = ["delegate"]
certificates = ["CN=portal,O=acme"]

[[principal]]
name = "anna"
tenant = "globex"
roles = ["caller"]
"""


def principals(tmp_path: Path, text: str = FILE) -> Principals:
    path = tmp_path / "principals.toml"
    path.write_text(text)
    return Principals(path)


def certificate(name: str) -> Credential:
    return Credential(CredentialKind.CERTIFICATE, name)


def token(subject: str, **claims: object) -> Credential:
    return Credential(CredentialKind.TOKEN, f"{ISSUER} {subject}", {"iss": ISSUER, "sub": subject, **claims})


def test_several_credentials_of_a_person_are_one_principal(tmp_path: Path) -> None:
    table = principals(tmp_path)
    by_certificate = table.caller(certificate("spiffe://acme.example/anna"))
    by_token = table.caller(token("a1"))
    assert by_certificate == Caller(
        tenant="acme",
        principal="anna",
        groups=frozenset({"finance"}),
        roles=frozenset({AccessRole.CALLER, AccessRole.APPROVER, AccessRole.OPERATOR}),
        credential_id="spiffe://acme.example/anna",
    )
    assert (by_token.tenant, by_token.principal) == ("acme", "anna")


@pytest.mark.parametrize(
    "credential",
    [
        token("b2"),
        token("b2", team="finance", env="test"),
        token("b2", team=["sales"], env="prod"),
        Credential(CredentialKind.TOKEN, "x", {"iss": "https://other.example", "sub": "a1"}),
        Credential(CredentialKind.TOKEN, "x", {"sub": "a1"}),
        certificate("spiffe://acme.example/bob"),
        certificate("a1"),
    ],
)
def test_a_credential_without_a_row_is_unknown(tmp_path: Path, credential: Credential) -> None:
    with pytest.raises(PrincipalUnknown):
        principals(tmp_path).caller(credential)


def test_claims_fit_by_each_value_or_by_one_item_of_a_list(tmp_path: Path) -> None:
    caller = principals(tmp_path).caller(token("b2", team=["sales", "finance"], env="prod"))
    assert caller.principal == "finance-bot"


def test_a_delegate_gets_what_a_person_may_lend(tmp_path: Path) -> None:
    portal = certificate("CN=portal,O=acme")
    caller = principals(tmp_path).caller(portal, on_behalf_of="anna")
    assert (caller.principal, caller.through, caller.actor, caller.on_behalf_of) == ("anna", "portal", "portal", "anna")
    assert caller.roles == {AccessRole.CALLER, AccessRole.APPROVER}
    assert caller.credential_id == portal.id


@pytest.mark.parametrize(
    ("credential", "person", "error"),
    [
        (certificate("CN=portal,O=acme"), "unknown", PrincipalUnknown),
        (certificate("spiffe://acme.example/anna"), "finance-bot", PermissionDenied),
    ],
)
def test_a_person_is_named_by_a_delegate_and_is_in_its_tenant(
    tmp_path: Path, credential: Credential, person: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        principals(tmp_path).caller(credential, on_behalf_of=person)


def test_without_identity_everybody_may_do_everything() -> None:
    assert Principals().caller(NO_CREDENTIAL) == DEFAULT_CALLER
    assert DEFAULT_CALLER.roles == frozenset(AccessRole)


ROW = '[[principal]]\nname = "a"\ntenant = "t"\nroles = ["caller"]\n'


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[[principal", ":1:", "not TOML"),
        ('[[principal]]\nname = "a"\nroles = ["caller"]\n', ":1:", "tenant: Field required"),
        (ROW.replace('"t"', '"t\\u0000"'), ":3:", "tenant"),
        (ROW.replace('"t"', '"../../etc"'), ":3:", "tenant"),
        (ROW.replace('"t"', '"ténant"'), ":3:", "tenant"),
        (ROW.replace('"t"', '""'), ":3:", "tenant"),
        (ROW.replace('"a"', '"a b"'), ":2:", "name"),
        (ROW.replace("caller", "king"), ":4:", "roles"),
        (ROW.replace('"caller"', ""), ":4:", "roles"),
        (ROW + "groups = [" + ", ".join(f'"g{n}"' for n in range(MAX_GROUPS + 1)) + "]", ":5:", "groups"),
        (ROW + 'role = "caller"', ":5:", "role: Extra inputs"),
        (ROW + "tokens = [{ issuer = 'i' }]", ":5:", "need a subject or claims"),
        (ROW + ROW, ":6:", "a of tenant t"),
        (ROW + "certificates = ['c', 'c']", ":5:", "that of a principal before: c"),
        (ROW + "tokens = [{ issuer = 'i', subject = 's' }, { issuer = 'i', subject = 's' }]", ":5:", "s of i"),
        ("principal = 3", ":1:", "principal"),
        ("", ":", "no row"),
        ("principal = []", ":", "no row"),
        ("# all of it is still to be written", ":", "no row"),
    ],
)
def test_a_bad_file_names_the_line_and_the_key(tmp_path: Path, text: str, place: str, words: str) -> None:
    with pytest.raises(BadFile) as raised:
        principals(tmp_path, text)
    assert f"principals.toml{place}" in str(raised.value)
    assert words in str(raised.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "principals.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadFile, match="not UTF-8"):
        Principals(tmp_path / "principals.toml")


async def test_a_changed_file_changes_who_may_do_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = principals(tmp_path)
    reports: list[tuple[str, str]] = []
    table.report_to(lambda name, outcome: reports.append((name, outcome)))
    anna = certificate("spiffe://acme.example/anna")
    assert table.file is not None
    (tmp_path / "principals.toml").write_text(FILE.replace('"operator"', '"auditor"'))
    assert await table.file.look()
    assert AccessRole.AUDITOR in table.caller(anna).roles
    for bad in ("[[principal", ""):
        (tmp_path / "principals.toml").write_text(bad)
        assert not await table.file.look()
        assert AccessRole.AUDITOR in table.caller(anna).roles
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "no row [[principal]]" in caplog.text
    assert reports == [("principals", "LOADED"), ("principals", "REFUSED"), ("principals", "REFUSED")]
