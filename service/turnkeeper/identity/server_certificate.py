"""The certificate and key that the server shows to its callers, read again whenever their files change."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from turnkeeper.start_errors import SettingError

POLL: Final = 0.5
"""Seconds between two readings of the files."""
PATIENCE: Final = 2.0
"""Seconds for which files may not fit together before that is logged: they are written one after the other."""
WARN: Final = timedelta(days=14)
"""How long before the certificate's end the log has warnings."""
WARN_AGAIN: Final = 12 * 3600.0
"""Seconds between two of these warnings."""
MOST_BYTES: Final = 1 << 20
"""Bytes of each file, at most."""

logger = logging.getLogger(__name__)


class UnfitFiles(Exception):
    """The files cannot be used. The message names the file at fault, and the reason."""


class TlsFiles(NamedTuple):
    """The files of the settings."""

    certificate: Path
    """PEM: the server's certificate, then those that lead to its CA."""
    key: Path
    client_ca: Path | None
    """PEM: the CAs whose certificates the callers need; None if they need none."""


class TlsContent(NamedTuple):
    """What is in the files."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True)
class Served:
    """A certificate and key that fit together."""

    content: TlsContent
    serial: int
    expires_at: datetime


class ServerCertificate:
    """The newest certificate and key that fit together. Its `run` must run beside it."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files. Raises SettingError if they cannot be used."""
        self._files = files
        self.report: Callable[[str, str], None] = lambda _name, _outcome: None
        """Called with "certificate", and LOADED or REFUSED, after each change."""
        try:
            self.served = checked(_read(files), files)
        except UnfitFiles as error:
            raise SettingError(f"{error}; the server needs it for TLS") from None
        self._refused: tuple[str, TlsContent | None] | None = None
        self._refused_since = 0.0
        self._refusal_logged = False
        self._warned = -WARN_AGAIN

    async def run(self) -> None:
        """Reads the files every POLL seconds until it is cancelled."""
        while True:
            self._warn_of_end()
            await asyncio.sleep(POLL)
            await self.poll()

    async def poll(self) -> None:
        """Reads the files. Files that do not fit together change nothing; after PATIENCE that is logged and counted."""
        content: TlsContent | None = None
        try:
            content = await asyncio.to_thread(_read, self._files)
            if content == self.served.content:
                self._refused = None
                return
            served = checked(content, self._files)
        except UnfitFiles as error:
            self._refuse((str(error), content))
            return
        self._refused = None
        self.served = served
        self._warned = -WARN_AGAIN
        self.report("certificate", "LOADED")
        logger.info(
            "TLS: new connections get the certificate with serial %x, valid until %s", served.serial, served.expires_at
        )

    def _refuse(self, refused: tuple[str, TlsContent | None]) -> None:
        now = time.monotonic()
        if refused != self._refused:
            self._refused, self._refused_since, self._refusal_logged = refused, now, False
        elif not self._refusal_logged and now - self._refused_since >= PATIENCE:
            self._refusal_logged = True
            self.report("certificate", "REFUSED")
            logger.warning(
                "TLS: %s; new connections still get the certificate with serial %x, valid until %s",
                refused[0],
                self.served.serial,
                self.served.expires_at,
            )

    def _warn_of_end(self) -> None:
        left = self.served.expires_at - datetime.now(UTC)
        now = time.monotonic()
        if left < WARN and now - self._warned >= WARN_AGAIN:
            self._warned = now
            logger.warning(
                "TLS: the certificate in %s ends at %s, in %.1f days; then no caller can connect: renew it",
                self._files.certificate,
                self.served.expires_at,
                left / timedelta(days=1),
            )


def checked(content: TlsContent, files: TlsFiles) -> Served:
    """Returns the certificate and key that a server can show. Raises UnfitFiles."""
    certificate = _certificates(content.certificate, files.certificate)[0]
    try:
        key = load_pem_private_key(content.key, password=None)
    except TypeError:
        raise UnfitFiles(f"{files.key} is encrypted: write the key without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnfitFiles(f"{files.key} has no private key in PEM") from None
    try:
        fits = _public(key.public_key()) == _public(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        raise UnfitFiles(f"{files.certificate} has a key of an unknown kind") from None
    if not fits:
        raise UnfitFiles(f"{files.key} is not the key of the certificate in {files.certificate}")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise UnfitFiles(f"{files.certificate} ended at {certificate.not_valid_after_utc}")
    if content.client_ca is not None and files.client_ca is not None:
        _certificates(content.client_ca, files.client_ca)
    return Served(content, certificate.serial_number, certificate.not_valid_after_utc)


def _public(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded


def _certificates(content: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise UnfitFiles(f"{path} has no certificate in PEM") from None


def _read(files: TlsFiles) -> TlsContent:
    return TlsContent(
        _content(files.certificate),
        _content(files.key),
        None if files.client_ca is None else _content(files.client_ca),
    )


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UnfitFiles(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise UnfitFiles(f"{path} has more than {MOST_BYTES} bytes")
    return content
