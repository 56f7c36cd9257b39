"""Identity `mtls+jwt`: the certificate names a peer that may carry others' tokens, the token names the caller."""

from turnkeeper.identity.certificates import peer_credential
from turnkeeper.identity.credential import CallContext, Credential, Refusal, refused
from turnkeeper.identity.tokens import Tokens
from turnkeeper.peer_list import PeerList


class CarriedTokens:
    """Checks the certificate of the peer, then the token that it carries."""

    def __init__(self, peers: PeerList, tokens: Tokens) -> None:
        self._peers = peers
        self._tokens = tokens

    async def credential(self, context: CallContext) -> Credential:
        """Returns the token's credential.

        Raises Unauthenticated: of the certificate MISSING, MALFORMED, EXPIRED or UNLISTED_PEER, then of the token.
        """
        if peer_credential(context).id not in self._peers.ids:
            raise refused(Refusal.UNLISTED_PEER)
        return await self._tokens.credential(context)
