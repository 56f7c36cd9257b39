"""Errors as one paragraph for a person: what happened, and what to do next. With the exit status of each."""

import grpc

from turnkeeper.start_errors import SettingError
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper_client.errors import NotFound, SessionError, TransportError, TurnkeeperError, Unauthenticated


class CommandFailed(Exception):
    """A command ends with this message, which tells what to do next."""

    def __init__(self, message: str, status: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.status = status


def explained(error: Exception, address: str) -> tuple[str, ExitCode]:
    """Returns the message and the exit status for an error that a command may end with. Raises any other one."""
    match error:
        case CommandFailed():
            return str(error), error.status
        case SettingError():
            return str(error), ExitCode.USAGE
        case TransportError():
            return _transport(error, address), ExitCode.NO_ANSWER
        case SessionError():
            return _refusal(error), ExitCode.REFUSED
        case TurnkeeperError():
            return str(error), ExitCode.FAILED
    raise error


def _transport(error: TransportError, address: str) -> str:
    match error.status:
        case grpc.StatusCode.UNAVAILABLE if "SSL" in error.message or "handshake" in error.message.lower():
            return f"{address} did not accept the connection's TLS: check --tls-ca and --tls-certificate"
        case grpc.StatusCode.UNAVAILABLE:
            return (
                f"nothing answers at {address}: start a server with `turnkeeper dev`, or name its --address; "
                "if it expects TLS, pass --tls-ca"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{address} did not answer in time; try again, or look at `turnkeeper health`"
    return f"the call to {address} ended with {error.status.name}: {error.message}"


def _refusal(error: SessionError) -> str:
    fields = "".join(f"\n  {field}: {problem}" for field, problem in error.fields.items())
    wait = f" Try again in {error.retry_after.total_seconds():g} s." if error.retry_after else ""
    advice = ""
    if isinstance(error, Unauthenticated):
        advice = " Pass --token-file, or --tls-certificate and --tls-key."
    elif isinstance(error, NotFound) and error.session_id:
        advice = " `turnkeeper sessions` lists those that you may see."
    elif error.reason == "AGENT_NOT_FOUND":
        advice = " `turnkeeper agents` lists those that there are."
    message = error.message if error.message.endswith((".", "!", "?")) else f"{error.message}."
    return f"{message}{wait}{advice} ({error.reason}){fields}"
