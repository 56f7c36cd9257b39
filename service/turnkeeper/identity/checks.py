"""How credentials are checked, by the settings: the check, and what must run beside it."""

import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Final

from turnkeeper.identity.carried_tokens import CarriedTokens
from turnkeeper.identity.certificates import Certificates
from turnkeeper.identity.credential import Anyone, Authenticator
from turnkeeper.identity.forwarded import Forwarded
from turnkeeper.identity.key_set import KeySet
from turnkeeper.identity.key_source import KeyFile, KeyServer
from turnkeeper.identity.server_certificate import ServerCertificate, TlsFiles
from turnkeeper.identity.tokens import Tokens
from turnkeeper.peer_list import PeerList
from turnkeeper.settings import Settings
from turnkeeper.start_errors import SettingError

FILE_AGE: Final = timedelta(seconds=1)
"""How often a JWK set in a file is read."""

Job = Callable[[], Coroutine[None, None, None]]

logger = logging.getLogger(__name__)


class Checks:
    """The check of credentials that the settings choose, and the server's own certificate."""

    def __init__(
        self, authenticator: Authenticator, certificate: ServerCertificate | None, keys: KeySet | None
    ) -> None:
        """`certificate`: None without TLS. `keys`: None without tokens."""
        self.authenticator = authenticator
        self.certificate = certificate
        self._keys = keys
        self._watched = [part for part in (certificate, keys) if part is not None]

    @property
    def jobs(self) -> list[Job]:
        """The background jobs, which notice changes."""
        return [part.run for part in self._watched]

    def rest_in(self, resting: Callable[[], AbstractContextManager[None]]) -> None:
        """From now on a call enters `resting` for as long as it waits for keys."""
        if self._keys is not None:
            self._keys.resting = resting

    def report_to(self, report: Callable[[str, str], None]) -> None:
        """From now on `report` gets each change: "certificate" or "keys", and LOADED or REFUSED."""
        for part in self._watched:
            part.report = report


def checks_of(settings: Settings) -> Checks:
    """Returns what the settings choose, and logs what --trust-network leaves open.

    Raises SettingError if the server's certificate cannot be used.
    """
    if settings.trust_network:
        logger.warning("--trust-network is set: %s", _exposure(settings))
    keys = _keys(settings) if settings.jwt_keys and "jwt" in settings.identity else None
    return Checks(_authenticator(settings, keys), _certificate(settings), keys)


def _authenticator(settings: Settings, keys: KeySet | None) -> Authenticator:
    peers = PeerList.parse(settings.trusted_peers)
    if settings.identity == "none":
        return Anyone()
    if settings.identity == "mtls":
        return Certificates()
    if settings.identity == "forwarded":
        return Forwarded(peers)
    if keys is None:
        raise SettingError(f"--identity {settings.identity} needs --jwt-keys")
    tokens = Tokens(keys, issuer=settings.jwt_issuer, audience=settings.jwt_audience, algorithms=settings.algorithms)
    return CarriedTokens(peers, tokens) if settings.identity == "mtls+jwt" else tokens


def _certificate(settings: Settings) -> ServerCertificate | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return ServerCertificate(TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca))


def _keys(settings: Settings) -> KeySet:
    place, age = settings.jwt_keys, settings.jwt_keys_age
    if place.startswith(("http://", "https://")):
        return KeySet(KeyServer(place), algorithms=settings.algorithms, age=age)
    return KeySet(KeyFile(Path(place)), algorithms=settings.algorithms, age=min(age, FILE_AGE))


def _exposure(settings: Settings) -> str:
    if settings.identity == "none":
        return "every caller that can connect may do everything"
    if not settings.has_tls:
        return "without TLS, credentials and conversations can be read, and replaced, on their way"
    return "the JWK set may come by plain HTTP, and be replaced on its way"
