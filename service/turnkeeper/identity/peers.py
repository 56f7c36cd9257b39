"""The peers that may carry the credentials of others."""

from turnkeeper.errors import Unauthenticated
from turnkeeper.identity.certificates import peer_credential
from turnkeeper.identity.credential import CallContext
from turnkeeper.peer_list import PeerList


def is_listed(context: CallContext, peers: PeerList) -> bool:
    """Returns True if the call's peer is listed by its address, or has a valid certificate with a listed id."""
    if peers.has_address(context.peer()):
        return True
    try:
        return peer_credential(context).id in peers.ids
    except Unauthenticated:
        return False
