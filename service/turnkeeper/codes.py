"""The published error numbers, the gRPC statuses that they belong to, and an error as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum


class Code(IntEnum):
    """The published numbers. A number never changes, and is never used for another error."""

    SESSION_NOT_FOUND = 1
    SESSION_NOT_ACTIVE = 2
    SESSION_EXPIRED = 3
    SESSION_SUSPENDED = 4
    AGENT_NOT_FOUND = 5
    AGENT_CONFIG_ERROR = 6
    AGENT_NOT_AVAILABLE = 7
    LLM_TIMEOUT = 8
    LLM_RATE_LIMIT = 9
    LLM_API_ERROR = 10
    LLM_CONTENT_FILTER = 11
    LLM_TOKEN_LIMIT = 12
    TOOL_NOT_FOUND = 13
    TOOL_EXECUTION_ERROR = 14
    TOOL_TIMEOUT = 15
    TOOL_PERMISSION_DENIED = 16
    TOOL_VALIDATION_ERROR = 17
    APPROVAL_NOT_FOUND = 18
    APPROVAL_EXPIRED = 19
    APPROVAL_ALREADY_PROCESSED = 20
    INTERNAL_ERROR = 21
    RATE_LIMIT_EXCEEDED = 22
    SERVICE_UNAVAILABLE = 23
    INVALID_REQUEST = 24
    SESSION_ALREADY_EXISTS = 101
    AGENT_ALREADY_EXISTS = 102
    TURN_NOT_FOUND = 103
    CHECKPOINT_NOT_FOUND = 104
    TURN_IN_PROGRESS = 105
    ETAG_MISMATCH = 106
    STREAM_ROTATED = 107
    SLOW_CONSUMER = 108
    TURN_NOT_RETRYABLE = 109
    TOOL_CALL_NOT_PENDING = 110
    ARGUMENTS_HASH_MISMATCH = 111
    TOOL_OUTCOME_UNKNOWN = 112
    REQUEST_ID_REUSED = 113
    PAGE_TOKEN_INVALID = 114
    CURSOR_EXPIRED = 115
    BUDGET_EXCEEDED = 116
    QUOTA_EXCEEDED = 117
    SERVER_DRAINING = 118
    UNAUTHENTICATED = 119
    PERMISSION_DENIED = 120
    NOT_IMPLEMENTED = 121
    RUN_DEFECT = 122
    SESSION_CONTENDED = 123
    OVERLOADED = 124
    PRINCIPAL_UNKNOWN = 125
    ADMISSION_FROZEN = 126
    TURN_COUNT_MISMATCH = 127


class Family(IntEnum):
    """gRPC status codes by their canonical numbers (google.rpc.Code)."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An error as it ends a call."""

    family: Family
    code: Code
    message: str
    """Tells the caller what to do next; holds no secret."""
    metadata: Mapping[str, str]
    session_id: str = ""
    turn_id: str = ""
    cursor: str = ""
    """Where the caller's stream may go on; empty where it may not, or where that is not known."""
    retry_after: timedelta | None = None
    """The least time to wait before another try; None if no wait is needed or known."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Of an invalid request: the path of each field at fault, and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetail:
    """An error as it is stored with a turn. `errors_by_code.error_of` returns its exception."""

    code: Code
    message: str
    retry_after: timedelta | None = None
    """The least time to wait before another try; None if no wait is needed or known."""
    metadata: Mapping[str, str] = field(default_factory=dict)
