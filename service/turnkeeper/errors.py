"""Every error that a caller can see: a family is a gRPC status, a leaf is one code. A leaf's docstring is its message.

A test compares them with the proto's `SessionErrorCode`. Nothing here imports gRPC: `rpc/status.py` writes to the wire.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar

from turnkeeper.codes import Code, ErrorDetail, Family, Status


class SessionError(Exception):
    """The call failed."""

    code: Code = Code.INTERNAL_ERROR
    family: ClassVar[Family] = Family.INTERNAL
    rests_on_reading: bool = False  # True if a reading that lags may be why, see `rpc/refusals.py`
    needs_newer_version: bool = False
    """True if only a replica of a newer version can do it: this one does not try again by itself."""

    def __init__(  # noqa: PLR0913 - all but the message are optional facts
        self,
        message: str = "",
        *,
        metadata: Mapping[str, str] | None = None,
        session_id: str = "",
        turn_id: str = "",
        cursor: str = "",
        retry_after: timedelta | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        """`message` replaces the class's own sentence. It tells the caller what to do next, and holds no secret."""
        self.message = message or (type(self).__doc__ or "").strip()
        super().__init__(self.message)
        self.metadata, self.fields, self.retry_after = dict(metadata or {}), dict(fields or {}), retry_after
        self.session_id, self.turn_id, self.cursor = session_id, turn_id, cursor

    def to_status(self) -> Status:
        """Returns the error as the status of a call."""
        facts = ("message", "metadata", "session_id", "turn_id", "cursor", "retry_after", "fields")
        return Status(family=self.family, code=self.code, **{name: getattr(self, name) for name in facts})

    def to_dict(self) -> dict[str, object]:
        """Returns the error for logs and JSON: `code` and `status` by name, `message`, `metadata`, what else is set."""
        code, status = self.code.name, self.family.name
        known: dict[str, object] = {"code": code, "status": status, "message": self.message, "metadata": self.metadata}
        known |= {name: getattr(self, name) for name in ("session_id", "turn_id", "cursor") if getattr(self, name)}
        if self.retry_after is not None:
            known["retry_after_s"] = self.retry_after.total_seconds()
        return known

    def to_event(self) -> ErrorDetail:
        """Returns the error as a durable event and a turn store it."""
        return ErrorDetail(code=self.code, message=self.message, retry_after=self.retry_after, metadata=self.metadata)


class InvalidArgument(SessionError):
    """The request is not valid; change it before sending it again."""

    code = Code.INVALID_REQUEST
    family = Family.INVALID_ARGUMENT


class NotFound(SessionError):
    """What the request names does not exist, or the caller may not see it."""

    family = Family.NOT_FOUND


class AlreadyExists(SessionError):
    """Something else of this name exists; choose another name."""

    family = Family.ALREADY_EXISTS


class FailedPrecondition(SessionError):
    """Something else must change before this call can succeed."""

    family = Family.FAILED_PRECONDITION


class Aborted(SessionError):
    """This attempt ended; another one may succeed."""

    family = Family.ABORTED


class ResourceExhausted(SessionError):
    """A limit was reached."""

    family = Family.RESOURCE_EXHAUSTED


class Unavailable(SessionError):
    """The service cannot answer now; send the same call again with the same request_id."""

    family = Family.UNAVAILABLE


class SessionNotFound(NotFound):
    """No such session; check session_id, or create the session first."""

    code = Code.SESSION_NOT_FOUND


class SessionNotActive(FailedPrecondition):
    """The session has ended; create a new session, or fork this one."""

    code = Code.SESSION_NOT_ACTIVE


class SessionExpired(FailedPrecondition):
    """The session has expired; create a new session, or fork this one."""

    code = Code.SESSION_EXPIRED


class SessionIsSuspended(FailedPrecondition):
    """The session is suspended; call ResumeSession first."""

    code = Code.SESSION_SUSPENDED


class AgentNotFound(NotFound):
    """No such agent; ListAgents lists those that exist."""

    code = Code.AGENT_NOT_FOUND


class AgentConfigError(FailedPrecondition):
    """The agent cannot run as it is configured; its operator must change it."""

    code = Code.AGENT_CONFIG_ERROR


class AgentNotAvailable(Unavailable):
    """The agent cannot take work now; send the same call again later."""

    code = Code.AGENT_NOT_AVAILABLE


class LlmTimeout(Aborted):
    """The model did not answer in time; call RetryTurn."""

    code = Code.LLM_TIMEOUT


class LlmRateLimit(ResourceExhausted):
    """The model's provider limits its rate; call RetryTurn after the given delay."""

    code = Code.LLM_RATE_LIMIT


class LlmApiError(Aborted):
    """The model's server failed; call RetryTurn."""

    code = Code.LLM_API_ERROR


class LlmContentFilter(InvalidArgument):
    """The model's provider refused the content; send another message."""

    code = Code.LLM_CONTENT_FILTER


class LlmTokenLimit(InvalidArgument):
    """The conversation does not fit the model's window; send a shorter message or start a new session."""

    code = Code.LLM_TOKEN_LIMIT


class ToolNotFound(FailedPrecondition):
    """The agent names a tool that is not installed; its operator must install it."""

    code = Code.TOOL_NOT_FOUND


class ToolExecutionError(Aborted):
    """A tool failed; call RetryTurn if its effect may be repeated."""

    code = Code.TOOL_EXECUTION_ERROR


class ToolTimeout(Aborted):
    """A tool did not finish in time; call RetryTurn if its effect may be repeated."""

    code = Code.TOOL_TIMEOUT


class ToolPermissionDenied(SessionError):
    """The agent's policy denies this tool; its operator must change the policy."""

    code = Code.TOOL_PERMISSION_DENIED
    family = Family.PERMISSION_DENIED


class ToolValidationError(InvalidArgument):
    """The arguments do not match the tool's schema; change them."""

    code = Code.TOOL_VALIDATION_ERROR


class ApprovalNotFound(NotFound):
    """No such approval; ListApprovals lists those that you may see."""

    code = Code.APPROVAL_NOT_FOUND


class ApprovalHasExpired(FailedPrecondition):
    """The approval expired before it was decided; the tool call will not run, and the turn goes on without it."""

    code = Code.APPROVAL_EXPIRED


class ApprovalAlreadyProcessed(FailedPrecondition):
    """The approval is no longer pending; read who decided it, and how, in the metadata."""

    code = Code.APPROVAL_ALREADY_PROCESSED


class InternalError(SessionError):
    """The service met a defect of its own; report the request's time and method to its operator."""

    code = Code.INTERNAL_ERROR


class RateLimitExceeded(ResourceExhausted):
    """Too many calls; send the same call again after the given delay."""

    code = Code.RATE_LIMIT_EXCEEDED


class ServiceUnavailable(Unavailable):
    """The service cannot reach its database now; send the same call again with the same request_id."""

    code = Code.SERVICE_UNAVAILABLE


class InvalidRequest(InvalidArgument):
    """The request is not valid; change the fields that the metadata names."""

    code = Code.INVALID_REQUEST


class SessionAlreadyExists(AlreadyExists):
    """A session with this id exists and another request created it; choose another session_id."""

    code = Code.SESSION_ALREADY_EXISTS


class AgentAlreadyExists(AlreadyExists):
    """An agent with this name exists and is not the same; update it, or choose another name."""

    code = Code.AGENT_ALREADY_EXISTS


class TurnNotFound(NotFound):
    """No such turn; ListTurns lists the session's turns."""

    code = Code.TURN_NOT_FOUND


class CheckpointNotFound(NotFound):
    """No such checkpoint; ListCheckpoints lists the session's checkpoints."""

    code = Code.CHECKPOINT_NOT_FOUND


class TurnInProgress(Aborted):
    """A turn is running in this session; wait for it, cancel it, or send with if_busy ENQUEUE or INTERRUPT."""

    code = Code.TURN_IN_PROGRESS


class EtagMismatch(Aborted):
    """The session changed since you read it; read it again and repeat the change."""

    code = Code.ETAG_MISMATCH


class StreamRotated(Aborted):
    """The stream reached its planned age; open it again with the given cursor."""

    code = Code.STREAM_ROTATED


class SlowConsumer(Aborted):
    """The stream was not read for too long; open it again with the last cursor that you received."""

    code = Code.SLOW_CONSUMER


class TurnNotRetryable(FailedPrecondition):
    """Only a session's last turn can be retried, after it failed or was cancelled; send a new message instead."""

    code = Code.TURN_NOT_RETRYABLE


class ToolCallNotPending(FailedPrecondition):
    """This tool call does not wait for a result; the turn's pending items are the calls that do."""

    code = Code.TOOL_CALL_NOT_PENDING


class ArgumentsHashMismatch(FailedPrecondition):
    """The arguments_hash is not that of the pending call; get the approval again and decide on what it shows."""

    code = Code.ARGUMENTS_HASH_MISMATCH


class ToolOutcomeUnknown(FailedPrecondition):
    """It is unknown whether a tool of this turn took effect; decide its approval, or send a new message."""

    code = Code.TOOL_OUTCOME_UNKNOWN


class RequestIdReused(InvalidArgument):
    """This request_id belongs to another request; use a new request_id for a new request."""

    code = Code.REQUEST_ID_REUSED


class PageTokenInvalid(InvalidArgument):
    """The page_token is not one of this list's; start again without it."""

    code = Code.PAGE_TOKEN_INVALID


class CursorExpired(SessionError):
    """The log was trimmed beyond this cursor, or ends before it; start at a sequence that the metadata names."""

    code = Code.CURSOR_EXPIRED
    family = Family.OUT_OF_RANGE


class BudgetExceeded(ResourceExhausted):
    """The turn reached a limit of its agent or request; raise the limit or shorten the work."""

    code = Code.BUDGET_EXCEEDED


class QuotaExceeded(ResourceExhausted):
    """A quota is used up; send the same call again once work in progress has ended."""

    code = Code.QUOTA_EXCEEDED


class ServerDraining(Unavailable):
    """This server is shutting down; open the stream again with the given cursor, on another server."""

    code = Code.SERVER_DRAINING


class Unauthenticated(SessionError):
    """The call carries no valid credential; send one with it."""

    code = Code.UNAUTHENTICATED
    family = Family.UNAUTHENTICATED


class PermissionDenied(SessionError):
    """The caller's roles do not allow this call; ask the operator for a role that does."""

    code = Code.PERMISSION_DENIED
    family = Family.PERMISSION_DENIED


class PrincipalUnknown(SessionError):
    """The credential is valid but belongs to no principal; ask the operator to add it to the principals file."""

    code = Code.PRINCIPAL_UNKNOWN
    family = Family.PERMISSION_DENIED


class NotImplementedYet(SessionError):
    """This part of the API comes with a later release; docs/reference/status.md lists what works."""

    code = Code.NOT_IMPLEMENTED
    family = Family.UNIMPLEMENTED


class RunDefect(Aborted):
    """The service's own defect broke the turn's run twice; call RetryTurn, and report the turn to the operator."""

    code = Code.RUN_DEFECT


class SessionContended(Aborted):
    """Too many calls change this session at the same time; send the same call again after the given delay."""

    code = Code.SESSION_CONTENDED


class Overloaded(ResourceExhausted):
    """The replica has all the work that it can finish; send the same call again after the given delay."""

    code = Code.OVERLOADED
