"""How long the driver's commands take, as the driver reports them: a command that is retried counts each time."""

from typing import Protocol

from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent


class RecordCommand(Protocol):
    """`Metrics.database_finished`, or a function like it. Called on the thread that sent the command."""

    def __call__(self, command: str, *, database: str, seconds: float, error_type: str = "") -> None: ...


class CommandDurations(CommandListener):
    """Passes each command's duration to `record`. The driver makes no events for a client without a listener."""

    def __init__(self, record: RecordCommand) -> None:
        self._record = record

    def started(self, event: CommandStartedEvent) -> None:
        """Does nothing: the event of a command's end has its duration."""

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self._record(event.command_name, database=event.database_name, seconds=event.duration_micros / 1_000_000)

    def failed(self, event: CommandFailedEvent) -> None:
        """Names the error as the database does, or by the driver's class if the connection broke."""
        self._record(
            event.command_name,
            database=event.database_name,
            seconds=event.duration_micros / 1_000_000,
            error_type=str(event.failure.get("codeName") or event.failure.get("errtype") or "_OTHER"),
        )
