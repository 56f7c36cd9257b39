"""The inbox of an approver: what waits for a decision, over any number of connections."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from turnkeeper_client.calls import call
from turnkeeper_client.errors import NotFound, SessionError, TransportError, Unauthenticated
from turnkeeper_client.pb.v1.approval_pb2 import Approval, GetApprovalRequest, WatchApprovalsResponse
from turnkeeper_client.resume import Patience, ResumePolicy
from turnkeeper_client.stubs import Stubs
from turnkeeper_client.wire import StreamCall, responses_of, sleep, translated_errors


class ApprovalInbox:
    """The approvals that match, and what becomes of them. Iterate over it, for as long as you want.

    Yields each approval when it comes, when it changes, and once more when it no longer matches: the last time without
    its being in `waiting`. A broken connection is opened again by itself, and only what has changed meanwhile is
    yielded. A final error is raised as a SessionError or TransportError.
    """

    def __init__(self, stubs: Stubs, open_call: Callable[[], StreamCall], *, policy: ResumePolicy) -> None:
        self._stubs = stubs
        self._open = open_call
        self._policy = policy
        self._waiting: dict[str, Approval] = {}
        self._snapshot: set[str] | None = None  # the ids of the snapshot that is being read
        self._caught_up = False

    @property
    def waiting(self) -> Mapping[str, Approval]:
        """Those that match now, by id, oldest first."""
        return self._waiting

    @property
    def caught_up(self) -> bool:
        """True once all that matched at the beginning were yielded."""
        return self._caught_up

    async def __aiter__(self) -> AsyncGenerator[Approval, None]:
        async with aclosing(self._responses()) as responses:
            async for response in responses:
                for approval in await self._news_of(response):
                    yield approval

    async def _news_of(self, response: WatchApprovalsResponse) -> list[Approval]:
        """Returns what the response has that was not yielded before, and what the snapshot that it ends has no more."""
        if response.reset:
            self._snapshot = set()
        news = [approval for approval in response.approvals if self._waiting.get(approval.approval_id) != approval]
        self._waiting |= {approval.approval_id: approval for approval in response.approvals}
        if self._snapshot is not None:
            self._snapshot.update(approval.approval_id for approval in response.approvals)
        gone = [approval.approval_id for approval in response.gone]
        news.extend(response.gone)
        if response.caught_up and self._snapshot is not None:
            missed = [approval_id for approval_id in self._waiting if approval_id not in self._snapshot]
            self._snapshot, self._caught_up = None, True
            news += [approval for approval_id in missed if (approval := await self._now(approval_id)) is not None]
            gone += missed
        for approval_id in gone:
            self._waiting.pop(approval_id, None)
        return news

    async def _now(self, approval_id: str) -> Approval | None:
        """Returns an approval that went while there was no connection; None if its session is deleted."""
        try:
            response = await call(self._stubs.approvals.GetApproval, GetApprovalRequest(approval_id=approval_id))
        except NotFound:
            return None
        return response.approval

    async def _responses(self) -> AsyncGenerator[WatchApprovalsResponse, None]:
        """Yields the responses of one connection after another. Each begins with a snapshot."""
        tokens = self._stubs.tokens
        patience = Patience(self._policy, may_renew=tokens is not None)
        while True:
            token = await tokens.get() if tokens is not None else ""
            try:
                with translated_errors():
                    stream = self._open()
                self._snapshot = set()
                async with aclosing(responses_of(stream, silence=self._policy.silence.total_seconds())) as responses:
                    async for response in responses:
                        patience.responded()
                        yield response
                return
            except (SessionError, TransportError) as error:
                pause = patience.pause_after(error)
                if tokens is not None and isinstance(error, Unauthenticated):
                    tokens.reject(token)
            await sleep(pause)
