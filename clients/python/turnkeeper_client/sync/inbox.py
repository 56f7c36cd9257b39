# Generated from ../inbox.py by `make sync-client`. Do not edit.
"""The inbox of an approver: what waits for a decision, over any number of connections."""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import closing

from turnkeeper_client.errors import NotFound, SessionError, TransportError, Unauthenticated
from turnkeeper_client.pb.v1.approval_pb2 import Approval, GetApprovalRequest, WatchApprovalsResponse
from turnkeeper_client.resume import Patience, ResumePolicy
from turnkeeper_client.sync.calls import call
from turnkeeper_client.sync.stubs import Stubs
from turnkeeper_client.sync.wire import StreamCall, responses_of, sleep, translated_errors


class ApprovalInbox:
    """The approvals that match, and what becomes of them. Iterate over it, for as long as you want.

    Yields each approval when it comes, when it changes, and once more when it no longer matches: the last time without
    its being in `waiting`. A broken connection is opened again by itself, and only what has changed meanwhile is
    yielded. A loop that begins again goes on there. A final error is raised as a SessionError or TransportError.
    """

    def __init__(self, stubs: Stubs, open_call: Callable[[], StreamCall], *, policy: ResumePolicy) -> None:
        self._stubs = stubs
        self._open = open_call
        self._policy = policy
        self._waiting: dict[str, Approval] = {}
        self._snapshot: set[str] | None = None  # the ids of the snapshot that is being read
        self._caught_up = False
        self._news: deque[Approval] = deque()  # what was not yielded yet

    @property
    def waiting(self) -> Mapping[str, Approval]:
        """Those that match now, by id, oldest first."""
        return self._waiting

    @property
    def caught_up(self) -> bool:
        """True once all that matched at the beginning were yielded."""
        return self._caught_up

    def __iter__(self) -> Generator[Approval, None, None]:
        with closing(self._responses()) as responses:
            for _ in responses:
                while self._news:
                    yield self._news.popleft()

    def _take(self, response: WatchApprovalsResponse) -> None:
        """Takes in a response. Nothing has changed if what went cannot be read: the next snapshot has it all."""
        if response.reset:
            self._snapshot = set()
        matching = {approval.approval_id: approval for approval in response.approvals}
        gone: dict[str, Approval | None] = {approval.approval_id: approval for approval in response.gone}
        if self._snapshot is not None:
            self._snapshot |= matching.keys()
            if response.caught_up:
                missed = [approval_id for approval_id in self._waiting if approval_id not in self._snapshot]
                gone |= {approval_id: self._now(approval_id) for approval_id in missed}
                self._snapshot, self._caught_up = None, True
        self._news.extend(approval for key, approval in matching.items() if approval != self._waiting.get(key))
        self._news.extend(approval for approval in gone.values() if approval is not None)
        self._waiting |= matching
        for approval_id in gone:
            self._waiting.pop(approval_id, None)

    def _now(self, approval_id: str) -> Approval | None:
        """Returns an approval that went while there was no connection; None if its session is deleted."""
        try:
            response = call(self._stubs.approvals.GetApproval, GetApprovalRequest(approval_id=approval_id))
        except NotFound:
            return None
        return response.approval

    def _responses(self) -> Generator[WatchApprovalsResponse, None, None]:
        """Takes in and yields the responses of one connection after another. Each begins with a snapshot."""
        tokens = self._stubs.tokens
        patience = Patience(self._policy, may_renew=tokens is not None)
        while True:
            token = tokens.get() if tokens is not None else ""
            try:
                with translated_errors():
                    stream = self._open()
                self._snapshot = set()
                with closing(responses_of(stream, silence=self._policy.silence.total_seconds())) as responses:
                    for response in responses:
                        self._take(response)
                        patience.responded()
                        yield response
                return
            except (SessionError, TransportError) as error:
                pause = patience.pause_after(error)
                if tokens is not None and isinstance(error, Unauthenticated):
                    tokens.reject(token)
            sleep(pause)
