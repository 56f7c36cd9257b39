"""Identity `forwarded`: a proxy that is trusted has checked the caller's certificate, and passes on what it names.

The metadata `x-forwarded-client-cert` is Envoy's: elements with commas between, one for each proxy on the way, each of
`Key=Value` pairs. The last element is that of the proxy that is this server's peer; anybody may write the others.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from turnkeeper.identity.credential import CallContext, Credential, CredentialKind, Refusal, refused
from turnkeeper.identity.peers import is_listed
from turnkeeper.peer_list import SPIFFE, PeerList

HEADER: Final = "x-forwarded-client-cert"
MOST_BYTES: Final = 16 << 10
"""Bytes of the metadata's value, at most."""
_PAIR: Final = re.compile(r'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;\\]*))(?=[,;]|$)')
"""A pair, up to the next comma or semicolon. A value with one of these is in quotes, in which `\\` escapes."""
_ESCAPED: Final = re.compile(r"\\(.)")

Element = Mapping[str, Sequence[str]]
"""The values of each key, which is in lower case."""


class Forwarded:
    """Names the caller by what a listed peer forwards."""

    def __init__(self, peers: PeerList) -> None:
        self._peers = peers

    async def credential(self, context: CallContext) -> Credential:
        """Returns the credential. Raises Unauthenticated: UNLISTED_PEER, MISSING, SEVERAL or MALFORMED."""
        if not is_listed(context, self._peers):
            raise refused(Refusal.UNLISTED_PEER)
        values = [str(value) for name, value in context.invocation_metadata() or () if name == HEADER]
        if not values:
            raise refused(Refusal.MISSING)
        if len(values) > 1:
            raise refused(Refusal.SEVERAL)
        return Credential(CredentialKind.CERTIFICATE, _id(last_element(values[0])))


def last_element(value: str) -> Element:
    """Returns the last element. Raises Unauthenticated with MALFORMED if any of them cannot be read."""
    if len(value) > MOST_BYTES:
        raise refused(Refusal.MALFORMED)
    element: dict[str, list[str]] = {}
    position = 0
    while True:
        if (pair := _PAIR.match(value, position)) is None:
            raise refused(Refusal.MALFORMED)
        key, quoted, plain = pair.groups()
        element.setdefault(key.lower(), []).append(plain if quoted is None else _ESCAPED.sub(r"\1", quoted))
        position = pair.end()
        if position == len(value):
            return element
        if value[position] == ",":
            element = {}
        position += 1
        while value[position : position + 1] == " ":
            position += 1


def _id(element: Element) -> str:
    """Returns the SPIFFE id, or else the subject, by the rules for certificates."""
    uris = [uri for uri in element.get("uri", ()) if uri]
    if any(uri.startswith(SPIFFE) for uri in uris):
        names = uris
    else:
        names = [subject for subject in element.get("subject", ()) if subject]
    if len(names) != 1:
        raise refused(Refusal.MALFORMED)
    return names[0]
