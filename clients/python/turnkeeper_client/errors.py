"""Errors: one class for each gRPC status that the service uses, and one for failures of the transport."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import grpc

from turnkeeper_client.pb.v1 import error_pb2
from turnkeeper_client.pb.v1.error_pb2 import RetryAdvice, SessionErrorCode
from turnkeeper_client.pb.v1.event_pb2 import Event

ADVICE = (
    ("Connection refused", "Is the server started, and is this its port?"),
    ("DNS resolution failed", "Is the name of the host right?"),
    ("SSL", "Does the server have TLS, and do these credentials fit it?"),
    ("handshake", "Does the server have TLS, and do these credentials fit it?"),
    ("Socket closed", "Does the server expect TLS? Then give credentials=Credentials(ca=…)."),
)
"""What to look at after a failure of the connection, by what gRPC wrote about it."""
STATUS_ADVICE = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "It may have been carried out; repeat it with the same request_id.",
    grpc.StatusCode.UNIMPLEMENTED: "Is this a Turnkeeper server, and as new as this client?",
}


def one_paragraph(*sentences: str) -> str:
    """Returns the sentences as one line of text, each with its full stop."""
    lines = (" ".join(sentence.split()) for sentence in sentences if sentence)
    return " ".join(line if line.endswith((".", "!", "?")) else f"{line}." for line in lines)


def transport_advice(status: grpc.StatusCode, message: str) -> str:
    """Returns what to do after a call that the service did not answer; "" if that is not known."""
    return next((sentence for text, sentence in ADVICE if text in message), STATUS_ADVICE.get(status, ""))


def session_advice(details: "Details") -> list[str]:
    """Returns what an error's message has not: the fields that are wrong, how long to wait, how to retry a turn."""
    advice = [f"{field}: {problem}" for field, problem in details.fields.items()]
    if details.retry == error_pb2.RETRY_ADVICE_RETRY_TURN and details.turn_id:
        advice.append(f'For another attempt: session.retry("{details.turn_id}")')
    if details.retry_after is not None:
        advice.append(f"Wait for {details.retry_after.total_seconds():g} s first")
    return advice


class TurnkeeperError(Exception):
    """Anything that this package raises."""


class ClientClosed(TurnkeeperError):
    """The client was closed before this call."""


class UnknownEvent(TurnkeeperError):
    """The service sent an event that this version cannot read and must not skip; install a newer client."""

    def __init__(self, event: Event) -> None:
        super().__init__(
            f"event {event.sequence} of session {event.session_id} is of a kind that this client does not know"
            " and must not skip; install a newer turnkeeper-client"
        )
        self.event = event


class TransportError(TurnkeeperError):
    """The call ended without an answer of the service: the connection, a proxy or a deadline ended it.

    The request may have been carried out. Sending the same request_id again is safe.
    """

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(one_paragraph(f"{status.name}: {message}", transport_advice(status, message)))
        self.status = status
        self.message = message


def silent(seconds: float) -> TransportError:
    """Returns the error of a stream without any response for so long."""
    message = f"the stream was silent for {seconds:g} s, without even a keep-alive"
    return TransportError(grpc.StatusCode.UNAVAILABLE, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """The details that the service sent with an error."""

    code: SessionErrorCode.ValueType = error_pb2.SESSION_ERROR_CODE_UNSPECIFIED
    reason: str = ""
    session_id: str = ""
    turn_id: str = ""
    cursor: str = ""
    retry: RetryAdvice.ValueType = error_pb2.RETRY_ADVICE_UNSPECIFIED
    retry_after: timedelta | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)


class SessionError(TurnkeeperError):
    """The service refused the call, or the turn failed. Catch a family, or look at `code`."""

    def __init__(self, status: grpc.StatusCode, message: str, details: Details) -> None:
        super().__init__(one_paragraph(f"{details.reason}: {message}", *session_advice(details)))
        self.status = status
        self.message = message
        # A number that this version has no name for keeps its `reason`.
        self.code = details.code
        self.reason = details.reason
        self.session_id = details.session_id
        self.turn_id = details.turn_id
        self.cursor = details.cursor
        self.retry = details.retry
        self.retry_after = details.retry_after
        self.metadata = dict(details.metadata)
        # Of an invalid request: field path to what is wrong with it.
        self.fields = dict(details.fields)


class InvalidArgument(SessionError):
    """Change the request before sending it again."""


class NotFound(SessionError):
    """The resource does not exist, or belongs to another tenant."""


class AlreadyExists(SessionError):
    """The resource exists already, with other content."""


class PermissionDenied(SessionError):
    """The caller's roles or the agent's policy do not allow it."""


class ResourceExhausted(SessionError):
    """A limit was reached; `retry_after` is how long to wait, where waiting helps."""


class FailedPrecondition(SessionError):
    """Something else must change before this call can succeed."""


class Aborted(SessionError):
    """This attempt ended; another one may succeed. For a failed turn that is `session.retry(error.turn_id)`."""


class OutOfRange(SessionError):
    """The log no longer reaches back to this cursor. `cursor` is the oldest one to start from; earlier events are gone.

    `metadata` has `oldest_sequence`, `head_sequence` and `head_cursor`. A stream does not resume by itself after it:
    events are missing.
    """


class Unimplemented(SessionError):
    """The server does not serve this method."""


class Internal(SessionError):
    """The service met a defect of its own."""


class Unavailable(SessionError):
    """The service cannot answer now; send the same call again later with the same request_id."""


class Unauthenticated(SessionError):
    """The call carries no valid credential."""


FAMILIES: dict[grpc.StatusCode, type[SessionError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
