"""The command `turnkeeper credentials dev`: a CA, certificates, a signing key and tokens, to try identity with.

Not for production: anybody who can read the folder can call as anyone.
"""

import argparse
import ipaddress
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DOMAIN: Final = "turnkeeper.invalid"
ISSUER: Final = f"https://{DOMAIN}"
AUDIENCE: Final = "turnkeeper"
KEY_ID: Final = "dev"
TENANT: Final = "default"
DEFAULT_ROLES: Final = "caller"
CA_DAYS: Final = 3_650
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ROLES: Final = re.compile(r"[a-z]+(,[a-z]+)*")
_RESERVED: Final = frozenset({"ca", "server", "signing"})
_EARLIER: Final = timedelta(minutes=5)
"""How long before now a certificate begins: clocks differ."""


class UnfitArgument(Exception):
    """An argument has a value that it cannot have."""


def run(args: argparse.Namespace) -> int:
    """Writes the files, and returns the exit status: 2 if they cannot be written."""
    folder, days = Path(args.folder), timedelta(days=args.days)
    try:
        principals = parse(args.principal)
        if not 1 <= args.days <= CA_DAYS:
            raise UnfitArgument(f"--days must be from 1 to {CA_DAYS}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(folder, principals, hosts=("localhost", "127.0.0.1", "::1", *args.host), lifetime=days)
    except (UnfitArgument, OSError, ValueError) as error:
        print(f"turnkeeper credentials dev: {error}", file=sys.stderr)
        return 2
    print(f"credentials of {', '.join(principals)}: {folder}/; issuer {ISSUER}, audience {AUDIENCE}")
    return 0


def parse(specs: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Returns the roles of each principal, of `NAME` or `NAME=ROLE,ROLE`. Raises UnfitArgument."""
    principals: dict[str, Sequence[str]] = {}
    for spec in specs:
        name, _, roles = spec.partition("=")
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise UnfitArgument(f"{name!r} cannot be a principal: use letters, digits, . _ and -, at most 64")
        if not _ROLES.fullmatch(roles := roles or DEFAULT_ROLES):
            raise UnfitArgument(f"{spec!r}: roles are words with commas, such as alice=caller,approver")
        principals[name] = roles.split(",")
    return principals


def write(folder: Path, principals: Mapping[str, Sequence[str]], *, hosts: Sequence[str], lifetime: timedelta) -> None:
    """Writes everything. A CA and a signing key that are in the folder stay: a running server trusts the rest."""
    authority = Authority.kept(folder)
    authority.issue(folder, "server", names=[general_name(host) for host in hosts], lifetime=lifetime)
    for name in principals:
        uri = x509.UniformResourceIdentifier(spiffe_id(name))
        authority.issue(folder, name, names=[uri], lifetime=lifetime)
    signer = _kept_key(folder / "signing-key.pem")
    _write(folder / "keys.json", json.dumps({"keys": [public_jwk(signer)]}, indent=2).encode() + b"\n")
    for name in principals:
        _write(folder / f"{name}.token", token(signer, name, lifetime=lifetime).encode())
    _write(folder / "principals.toml", "\n".join(map(_row, principals, principals.values())).encode())


def spiffe_id(name: str) -> str:
    """Returns the SPIFFE id in the certificate of a principal."""
    return f"spiffe://{DOMAIN}/{name}"


def public_jwk(key: ec.EllipticCurvePrivateKey, key_id: str = KEY_ID) -> dict[str, object]:
    """Returns the public half of a signing key as a JWK."""
    jwk: dict[str, object] = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**jwk, "kid": key_id, "alg": "ES256", "use": "sig"}


def token(key: ec.EllipticCurvePrivateKey, subject: str, *, lifetime: timedelta, key_id: str = KEY_ID) -> str:
    """Returns a token of this subject."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + int(lifetime.total_seconds())}
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": key_id})


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls) -> Self:
        """Returns a new CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Turnkeeper dev CA")])
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            _builder(name, name, key, timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """Returns the CA of the folder, or writes a new one. Raises ValueError if its files cannot be read."""
        certificate, key = folder / "ca.pem", folder / "ca-key.pem"
        if certificate.exists() and key.exists():
            return cls(x509.load_pem_x509_certificate(certificate.read_bytes()), _kept_key(key))
        new = cls.new()
        _write(key, _pem(new.key))
        _write(certificate, new.certificate.public_bytes(Encoding.PEM))
        return new

    def issue(self, folder: Path, name: str, *, names: Sequence[x509.GeneralName], lifetime: timedelta) -> None:
        """Writes a certificate with these names, and its key."""
        certificate, key = self.issued(name, names=names, lifetime=lifetime)
        _write(folder / f"{name}-key.pem", key)
        _write(folder / f"{name}.pem", certificate)

    def issued(self, name: str, *, names: Sequence[x509.GeneralName], lifetime: timedelta) -> tuple[bytes, bytes]:
        """Returns a certificate and its key, both in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = (
            _builder(subject, self.certificate.subject, key, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(uses, critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM), _pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lifetime) - _EARLIER)
        .not_valid_after(now + lifetime)
    )


def _row(name: str, roles: Sequence[str]) -> str:
    listed = ", ".join(f'"{role}"' for role in roles)
    return (
        f'[[principal]]\nname = "{name}"\ntenant = "{TENANT}"\nroles = [{listed}]\n'
        f'certificates = ["{spiffe_id(name)}"]\ntokens = [{{ issuer = "{ISSUER}", subject = "{name}" }}]\n'
    )


def _kept_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Returns the key of the file, or writes a new one. Raises ValueError if the file has another kind of key."""
    if not path.exists():
        _write(path, _pem(ec.generate_private_key(ec.SECP256R1())))
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} has another kind of key: remove it")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, and replaces the old one at once."""
    new = path.with_name(f".{path.name}.new")
    new.touch(mode=0o600)
    new.write_bytes(content)
    new.replace(path)


def general_name(host: str) -> x509.GeneralName:
    """Returns the host as a certificate has it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
