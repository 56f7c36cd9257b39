"""The client: one channel and the calls that can be made over it."""

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from turnkeeper_client.agents import Agents
from turnkeeper_client.approvals import Approvals
from turnkeeper_client.channel import ChannelOption, Config, check_target, settled
from turnkeeper_client.credentials import Credentials, is_local
from turnkeeper_client.pb.v1.audit_pb2 import ExportAuditRequest
from turnkeeper_client.requests import STREAM_TIMEOUT
from turnkeeper_client.resume import ResumePolicy
from turnkeeper_client.session import Session
from turnkeeper_client.sessions import Sessions
from turnkeeper_client.stubs import Stubs
from turnkeeper_client.tokens import interceptors_of, tokens_of
from turnkeeper_client.wire import open_channel, translated_errors

PATIENT = ResumePolicy()


class Client:
    """A client of one Turnkeeper service. Make it inside a running event loop, and close it.

    `config`: `direct` balances over every address that the name resolves to, checks their health and repeats calls
    that were UNAVAILABLE; `mesh` leaves all that to the sidecar. `credentials`: for TLS and tokens; None is plain text.
    `resume`: how patient streams are. `channel_options`: gRPC's own; they override the package's.

    `target`: host and port, without `http://`. Raises ValueError for a URL, and for a token that would go to another
    machine in plain text, except with `mesh`.
    """

    def __init__(
        self,
        target: str,
        *,
        config: Config = "direct",
        credentials: Credentials | grpc.ChannelCredentials | None = None,
        resume: ResumePolicy = PATIENT,
        channel_options: Sequence[ChannelOption] = (),
    ) -> None:
        check_target(target)
        given = credentials if isinstance(credentials, Credentials) else Credentials()
        channel_credentials = given.tls() if isinstance(credentials, Credentials) else credentials
        if given.token is not None and channel_credentials is None and config == "direct" and not is_local(target):
            raise ValueError("a token in plain text can be read on its way: give ca, or config='mesh' with a sidecar")
        tokens = tokens_of(given)
        address, options = settled(target, config, channel_options)
        self._channel = open_channel(
            address, credentials=channel_credentials, options=options, interceptors=interceptors_of(given, tokens)
        )
        self._policy = resume
        self.stubs = Stubs.over(self._channel, tokens)
        self.sessions = Sessions(self.stubs, policy=resume)
        self.approvals = Approvals(self.stubs, policy=resume)
        self.agents = Agents(self.stubs)

    def session(self, session_id: str) -> Session:
        """Returns a handle of the session with that id; makes no call."""
        return Session(self.stubs, session_id, policy=self._policy)

    async def export_audit(
        self, *, tenant: str = "", service: bool = False, after_seal: int = 0
    ) -> AsyncIterator[bytes]:
        """Yields the audit trail of the caller's tenant as whole lines of JSON, for `turnkeeper audit verify`.

        Another tenant, or with `service` the service's own records, are for the role platform. Begins behind the seal
        `after_seal`. Raises PermissionDenied. An error in the middle ends it: begin again, or behind the last seal.
        """
        request = ExportAuditRequest(tenant=tenant, service=service, after_seal=after_seal)
        with translated_errors():
            async for response in self.stubs.audit.ExportAudit(request, timeout=STREAM_TIMEOUT):
                yield response.lines

    async def close(self) -> None:
        """Closes the channel. Every call in flight ends with an error."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
