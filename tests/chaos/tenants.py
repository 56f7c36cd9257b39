"""The tenants of a run: their principals, tokens and keys, and how what is theirs is told apart.

Both tenants use the same names of principals, the same ids of sessions and the same ids of requests. Each text that a
client, a model or a tool writes has its tenant in it, so that a reader can tell whose it is.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from turnkeeper.dev_credentials import AUDIENCE, ISSUER, KEY_ID, public_jwk
from turnkeeper.identity.tokens import HEADER, SCHEME

TENANTS: Final = ("amber", "birch")
USER: Final = "user"
APPROVER: Final = "approver"
OTHERS: Final = ("second", "third")
DEPUTY: Final = "deputy"
"""Votes with the authority of the last one of OTHERS, who lends it."""
FRIEND: Final = "friend"
"""Has the authority of the user in `make chaos-approvals`, and may decide nothing with it."""
SPY: Final = "spy"
GROUP: Final = "finance"
MEMBERS: Final = frozenset({APPROVER, *OTHERS, USER})
"""Who is in the group that decides on payments; the user causes all calls, and may decide none."""
PRINCIPALS: Final[Mapping[str, Sequence[str]]] = {
    USER: ["caller", "approver"],
    APPROVER: ["approver", "auditor"],
    **{name: ["approver"] for name in OTHERS},
    DEPUTY: ["approver"],
    FRIEND: ["approver"],
    SPY: ["caller", "approver", "operator", "auditor", "platform"],
}
"""The principals of each tenant, and their roles."""
FOLDER: Final = "identity"
"""In the folder of a run."""
KEYS: Final = "keys.json"
ROWS: Final = "principals.toml"
_TOKENS: Final = "tokens.json"
_LIFETIME: Final = 24 * 60 * 60
"""Seconds before and after now: the clocks of servers are set forward and back by up to an hour."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a call: a principal of a tenant, with its token."""

    tenant: str
    principal: str
    token: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ((HEADER, f"{SCHEME} {self.token}"),)


def write(folder: Path) -> None:
    """Writes what the servers need to know the tenants' callers, and the callers' tokens."""
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {tenant: {name: _token(key, f"{tenant}/{name}") for name in PRINCIPALS} for tenant in TENANTS}
    rows = [_row(tenant, name) for tenant in TENANTS for name in PRINCIPALS]
    (folder / KEYS).write_text(json.dumps({"keys": [public_jwk(key)]}), encoding="utf-8")
    (folder / ROWS).write_text("\n".join(rows), encoding="utf-8")
    (folder / _TOKENS).write_text(json.dumps(tokens), encoding="utf-8")


def flags(folder: Path) -> Sequence[str]:
    """Returns the flags of a server that knows the callers of this folder, and no others."""
    who = ("--identity", "jwt", "--principals", str(folder / ROWS))
    return (*who, "--jwt-keys", str(folder / KEYS), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)


def identity(folder: Path, tenant: str, principal: str) -> Identity:
    """Returns one of the callers of this folder."""
    tokens = json.loads((folder / _TOKENS).read_text(encoding="utf-8"))
    return Identity(tenant, principal, tokens[tenant][principal])


def other(tenant: str) -> str:
    """Returns the tenant that this one must not see."""
    return TENANTS[1 - TENANTS.index(tenant)]


def label(tenant: str, name: str) -> str:
    """Returns a label of this tenant: what has it in it is the tenant's."""
    return f"{tenant}-{name}"


def is_foreign(content: bytes | str, tenant: str) -> bool:
    """Returns True if there is a label of another tenant in it."""
    text = content.encode() if isinstance(content, str) else content
    return label(other(tenant), "").encode() in text


def key(tenant: str, session_id: str) -> str:
    """Returns the name under which the checker knows a session: both tenants have sessions of the same id."""
    return f"{tenant}/{session_id}"


def tenant_of(session: str) -> str:
    """Returns the tenant of a session that has such a name."""
    return session.partition("/")[0]


def id_of(session: str) -> str:
    """Returns the id of a session that has such a name."""
    return session.partition("/")[2]


def _token(signer: ec.EllipticCurvePrivateKey, subject: str) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now - _LIFETIME, "exp": now + _LIFETIME}
    return jwt.encode(claims, signer, algorithm="ES256", headers={"kid": KEY_ID})


def _row(tenant: str, name: str) -> str:
    return (
        f'[[principal]]\nname = "{name}"\ntenant = "{tenant}"\nroles = {json.dumps(PRINCIPALS[name])}\n'
        f"groups = {json.dumps([GROUP] if name in MEMBERS else [])}\n"
        f'tokens = [{{ issuer = "{ISSUER}", subject = "{tenant}/{name}" }}]\n'
    )
