"""The caller of an RPC. With identity `none`, every caller is the principal `default` of the tenant `default`."""

from dataclasses import dataclass

from turnkeeper.domain.session import SessionKey
from turnkeeper.rpc.context import Context
from turnkeeper.store.changeset import RequestKey


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called: the principal, and the tenant whose sessions it sees."""

    tenant: str
    principal: str

    def session_key(self, session_id: str) -> SessionKey:
        """Returns the key of the session with this id in the caller's tenant."""
        return SessionKey(self.tenant, session_id)

    def request_key(self, request_id: str, *, family: str, session_id: str) -> RequestKey:
        """Returns the key under which a request of this caller is recorded; its repeats have the same key."""
        return RequestKey(
            tenant=self.tenant,
            session_id=session_id,
            principal=self.principal,
            family=family,
            request_id=request_id,
        )


DEFAULT_CALLER = Caller(tenant="default", principal="default")


def caller_of(context: Context) -> Caller:  # noqa: ARG001 - every identity but `none` needs it
    """Returns the caller of the RPC that `context` belongs to."""
    return DEFAULT_CALLER
