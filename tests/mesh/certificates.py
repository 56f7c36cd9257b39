"""The certificates of a run, laid out and renewed as a kubelet does it: a folder for each holder, swapped at once."""

import itertools
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from turnkeeper.dev_credentials import Authority, general_name

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
CA: Final = "ca.crt"
LIFETIME: Final = timedelta(days=1)
_CURRENT: Final = "..data"


class Certificates:
    """The CA of a run, and the certificates that it has issued. Their files are in `folder`, one folder a holder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = Authority.new()
        self._versions = itertools.count(1)

    @property
    def ca(self) -> bytes:
        """The certificate of the CA, PEM."""
        return self._authority.certificate.public_bytes(Encoding.PEM)

    def folder(self, holder: str) -> Path:
        return self._folder / holder

    def issue(self, holder: str, *, hosts: Sequence[str] = (), spiffe_id: str = "") -> None:
        """Gives the holder a new certificate and key. All of its files change at the same moment."""
        names = [general_name(host) for host in hosts]
        names += [x509.UniformResourceIdentifier(spiffe_id)] if spiffe_id else []
        certificate, key = self._authority.issued(holder, names=names, lifetime=LIFETIME)
        folder = self.folder(holder)
        version = folder / f"..{next(self._versions)}"
        version.mkdir(parents=True)
        for name, content in ((CERTIFICATE, certificate), (KEY, key), (CA, self.ca)):
            (version / name).write_bytes(content)
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(Path(_CURRENT, name))
        following = folder / "..data_tmp"
        following.symlink_to(version.name)
        following.replace(folder / _CURRENT)

    def serial(self, holder: str) -> int:
        """Returns the serial number of the holder's certificate as it is now."""
        return serial_of((self.folder(holder) / CERTIFICATE).read_bytes())


def serial_of(certificate: bytes) -> int:
    """Returns the serial number of a certificate in PEM."""
    return x509.load_pem_x509_certificate(certificate).serial_number
