"""Every way in which a model call can fail: its code, whether another try may help, and what to do next.

`Reason` is the service's own word for what happened. It is in the error's metadata, so that an operator can distinguish
a stall from a refused connection without the provider's text, which may hold secrets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.model.contract import ModelFailure


class Reason(StrEnum):
    """What happened to the call, as `ErrorDetail.metadata["reason"]` carries it."""

    RATE_LIMIT = "RATE_LIMIT"
    QUOTA = "QUOTA"
    CONNECT_TIMEOUT = "CONNECT_TIMEOUT"
    START_TIMEOUT = "START_TIMEOUT"
    STALL_TIMEOUT = "STALL_TIMEOUT"
    TOTAL_TIMEOUT = "TOTAL_TIMEOUT"
    SERVER_TIMEOUT = "SERVER_TIMEOUT"
    NO_CONNECTION = "NO_CONNECTION"
    SERVER_ERROR = "SERVER_ERROR"
    ERROR_EVENT = "ERROR_EVENT"
    CUT = "CUT"
    EMPTY = "EMPTY"
    NO_END = "NO_END"
    NO_FINISH_REASON = "NO_FINISH_REASON"
    BAD_FINISH_REASON = "BAD_FINISH_REASON"
    MALFORMED = "MALFORMED"
    UNREAD_ANSWER = "UNREAD_ANSWER"
    CONTEXT_LENGTH = "CONTEXT_LENGTH"
    ANSWER_TOO_LONG = "ANSWER_TOO_LONG"
    TOOL_CALL_CUT_SHORT = "TOOL_CALL_CUT_SHORT"
    CONTENT_FILTER = "CONTENT_FILTER"
    REFUSAL = "REFUSAL"
    UNAUTHORIZED = "UNAUTHORIZED"
    NOT_FOUND = "NOT_FOUND"
    BAD_REQUEST = "BAD_REQUEST"
    BAD_SCHEMA = "BAD_SCHEMA"
    FIELD_REFUSED = "FIELD_REFUSED"
    REDIRECTED = "REDIRECTED"
    BAD_PROVIDER = "BAD_PROVIDER"
    CALL_DEFECT = "CALL_DEFECT"
    NO_DESCRIPTOR = "NO_DESCRIPTOR"


@dataclass(frozen=True, slots=True)
class Row:
    """What follows from a reason."""

    code: Code
    retryable: bool
    """Another try of the same call may succeed."""
    message: str
    """For callers: what happened and what to do next."""


_AGAIN = "call RetryTurn"
_REPEATED_ONCE = frozenset(
    {
        Reason.STALL_TIMEOUT,
        Reason.TOTAL_TIMEOUT,
        Reason.ERROR_EVENT,
        Reason.CUT,
        Reason.EMPTY,
        Reason.NO_END,
        Reason.NO_FINISH_REASON,
        Reason.BAD_FINISH_REASON,
        Reason.MALFORMED,
        Reason.UNREAD_ANSWER,
        Reason.CALL_DEFECT,
    }
)
"""The server had begun to answer, or the call broke on a defect: see `ModelFailure`."""

TABLE: Mapping[Reason, Row] = {
    Reason.RATE_LIMIT: Row(
        Code.LLM_RATE_LIMIT, True, f"The model's provider limits its rate; {_AGAIN} after the given delay."
    ),
    Reason.QUOTA: Row(
        Code.LLM_RATE_LIMIT,
        False,
        "The quota with the model's provider is used up; its operator must raise it, then call RetryTurn.",
    ),
    Reason.CONNECT_TIMEOUT: Row(
        Code.LLM_TIMEOUT, True, f"The model's server did not accept a connection in time; {_AGAIN}."
    ),
    Reason.START_TIMEOUT: Row(Code.LLM_TIMEOUT, True, f"The model did not begin to answer in time; {_AGAIN}."),
    Reason.STALL_TIMEOUT: Row(Code.LLM_TIMEOUT, True, f"The model stopped in the middle of its answer; {_AGAIN}."),
    Reason.TOTAL_TIMEOUT: Row(Code.LLM_TIMEOUT, True, f"The model did not finish its answer in time; {_AGAIN}."),
    Reason.SERVER_TIMEOUT: Row(Code.LLM_TIMEOUT, True, f"The model's server reported a timeout; {_AGAIN}."),
    Reason.NO_CONNECTION: Row(Code.LLM_API_ERROR, True, f"The model's server could not be reached; {_AGAIN}."),
    Reason.SERVER_ERROR: Row(Code.LLM_API_ERROR, True, f"The model's server failed; {_AGAIN}."),
    Reason.ERROR_EVENT: Row(
        Code.LLM_API_ERROR, True, f"The model's server failed in the middle of its answer; {_AGAIN}."
    ),
    Reason.CUT: Row(Code.LLM_API_ERROR, True, f"The connection to the model broke before its answer ended; {_AGAIN}."),
    Reason.EMPTY: Row(Code.LLM_API_ERROR, True, f"The model's server sent an empty answer; {_AGAIN}."),
    Reason.NO_END: Row(Code.LLM_API_ERROR, True, f"The model's answer stopped without its end; {_AGAIN}."),
    Reason.NO_FINISH_REASON: Row(
        Code.LLM_API_ERROR, True, f"The model's answer ended without a finish reason; {_AGAIN}."
    ),
    Reason.BAD_FINISH_REASON: Row(
        Code.LLM_API_ERROR, True, f"The model's answer ended with an unknown finish reason; {_AGAIN}."
    ),
    Reason.MALFORMED: Row(
        Code.LLM_API_ERROR, True, f"The model's server sent an answer that cannot be read; {_AGAIN}."
    ),
    Reason.UNREAD_ANSWER: Row(
        Code.LLM_API_ERROR,
        True,
        "The model's server counted an answer, but sent no text, refusal, reasoning or tool call that can be read; "
        f"{_AGAIN}.",
    ),
    Reason.CONTEXT_LENGTH: Row(
        Code.LLM_TOKEN_LIMIT,
        False,
        "The conversation does not fit the model's window; send a shorter message or start a new session.",
    ),
    Reason.ANSWER_TOO_LONG: Row(
        Code.LLM_TOKEN_LIMIT,
        False,
        "The model's answer is larger than a message may be; ask for a shorter one.",
    ),
    Reason.TOOL_CALL_CUT_SHORT: Row(
        Code.LLM_TOKEN_LIMIT,
        False,
        "The model reached its output limit inside a tool call; raise the agent's limit or ask for less at once.",
    ),
    Reason.CONTENT_FILTER: Row(
        Code.LLM_CONTENT_FILTER, False, "The model's provider refused the content; send another message."
    ),
    Reason.REFUSAL: Row(Code.LLM_CONTENT_FILTER, False, "The model refused to answer; send another message."),
    Reason.UNAUTHORIZED: Row(
        Code.AGENT_CONFIG_ERROR,
        False,
        "The model's provider does not accept the credential; the agent's operator must change it.",
    ),
    Reason.NOT_FOUND: Row(
        Code.AGENT_CONFIG_ERROR,
        False,
        "The model's server knows no such model or address; the agent's operator must change it.",
    ),
    Reason.BAD_REQUEST: Row(
        Code.AGENT_CONFIG_ERROR,
        False,
        "The model's server refuses the request; the agent's operator must check its model, tools and limits.",
    ),
    Reason.BAD_SCHEMA: Row(
        Code.AGENT_CONFIG_ERROR,
        False,
        "A tool's or response's JSON schema is not JSON; the agent's operator must change it.",
    ),
    Reason.FIELD_REFUSED: Row(
        Code.AGENT_CONFIG_ERROR,
        False,
        "The model's server refuses the request's field {field}; the agent's operator must change what it holds, or "
        'leave it out with omit = ["{field}"].',
    ),
    Reason.REDIRECTED: Row(
        Code.AGENT_CONFIG_ERROR,
        False,
        "The model's server sends the call to another address; the agent's operator must set base_url to it, or "
        "follow_redirects = true.",
    ),
    Reason.BAD_PROVIDER: Row(
        Code.AGENT_CONFIG_ERROR,
        False,
        "The address, the key or a header of the model's server cannot be used; the agent's operator must change it.",
    ),
    Reason.CALL_DEFECT: Row(
        Code.LLM_API_ERROR, True, f"The call of the model failed in a way that was not foreseen; {_AGAIN}."
    ),
    Reason.NO_DESCRIPTOR: Row(
        Code.RUN_DEFECT,
        True,
        "The service has no file descriptor left to call the model, which was not asked; its operator must raise their "
        f"limit, then {_AGAIN}.",
    ),
}


def failure(
    reason: Reason,
    *,
    http_status: int = 0,
    retry_after: timedelta | None = None,
    cause: str = "",
    field: str = "",
    before_output: bool = False,
) -> ModelFailure:
    """Returns the exception for `reason`.

    `cause` is an exception's class name at most, never a provider's text; `field` is the request's that is refused.
    `before_output`: the model had no output yet, so that its server refused what it was sent.
    """
    row = TABLE[reason]
    metadata = {"reason": reason.value}
    if http_status:
        metadata["http_status"] = str(http_status)
    if before_output:
        metadata["output"] = "none"
    if cause:
        metadata["cause"] = cause
    if field:
        metadata["field"] = field
    message = row.message.replace("{field}", field)
    repeated_once = reason in _REPEATED_ONCE
    detail = ErrorDetail(code=row.code, message=message, retry_after=retry_after, metadata=metadata)
    return ModelFailure(detail, retryable=row.retryable, retry_after=retry_after, repeated_once=repeated_once)
