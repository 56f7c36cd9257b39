"""A scripted model's rules, as values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

_Keys = Mapping[str, Callable[[object], object]]


class ScriptError(ValueError):
    """The script is not valid; the message names the file, the rule and the key."""


class ScriptedFailure(StrEnum):
    """How a reply fails; docs/reference/scripted-model.md describes each."""

    RATE_LIMIT = "rate_limit"
    QUOTA = "quota"
    SERVER_ERROR = "server_error"
    BAD_REQUEST = "bad_request"
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTER = "content_filter"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    REFUSE = "refuse"
    EMPTY = "empty"
    SLOW_FIRST_TOKEN = "slow_first_token"  # noqa: S105 - no password
    STALL = "stall"
    COMMENTS = "comments"
    CUT = "cut"
    BAD_JSON = "bad_json"
    ERROR_EVENT = "error_event"
    NO_DONE = "no_done"
    NO_FINISH = "no_finish"

    @property
    def in_stream(self) -> bool:
        """Returns True if the failure comes between two chunks; any other one replaces the answer."""
        return self in _IN_STREAM

    @property
    def at_end(self) -> bool:
        """Returns True if the failure comes, without `fail_after`, after the last chunk instead of the first."""
        return self in (ScriptedFailure.NO_DONE, ScriptedFailure.NO_FINISH)


_IN_STREAM = frozenset(
    {
        ScriptedFailure.STALL,
        ScriptedFailure.COMMENTS,
        ScriptedFailure.CUT,
        ScriptedFailure.BAD_JSON,
        ScriptedFailure.ERROR_EVENT,
        ScriptedFailure.NO_DONE,
        ScriptedFailure.NO_FINISH,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedCall:
    """One tool call of a reply."""

    name: str
    arguments: str = "{}"
    """Sent unchanged, valid JSON or not."""
    call_id: str | None = None
    """None derives one from the conversation, "" sends none."""
    escape: bool = False
    """The values of placeholders are escaped, because the script's arguments are a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCount:
    """The usage that a reply reports."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One rule: when it applies, its answer, its failure. The fields are the keys of the script file."""

    match: str = ""
    after_tools: int | None = None
    times: int | None = None
    every: int | None = None
    text: str = ""
    chunk: int = 8
    delay: timedelta = timedelta()
    first_delay: timedelta = timedelta()
    tool_calls: tuple[ScriptedCall, ...] = ()
    finish_reason: str = ""
    usage: TokenCount | bool = True
    fail: ScriptedFailure | None = None
    fail_after: int | None = None
    retry_after: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    bytes_per_write: int | None = None

    def __post_init__(self) -> None:
        """Raises ScriptError for keys that exclude each other."""
        if self.fail_after is not None and not (self.fail and self.fail.in_stream):
            raise ScriptError(f"fail_after: needs a fail that strikes in a stream: {', '.join(sorted(_IN_STREAM))}")
        if self.retry_after and self.fail not in (
            ScriptedFailure.RATE_LIMIT,
            ScriptedFailure.QUOTA,
            ScriptedFailure.SERVER_ERROR,
        ):
            raise ScriptError("retry_after: needs fail = rate_limit, quota or server_error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Rules in order: the first that applies answers."""

    replies: tuple[Reply, ...]
    models: tuple[str, ...] = ("scripted",)
    """The names that GET /v1/models lists."""
