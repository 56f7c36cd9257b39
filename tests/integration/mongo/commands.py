"""Records the commands that a store's driver sends, and reads their filters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pymongo import monitoring

Command = dict[str, Any]


class Recorder(monitoring.CommandListener):
    """Records the commands on one database during `recording`. Register it before the client is created.

    Logins are not recorded: the driver shows nothing of them.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._recording = False
        self.commands: list[Command] = []
        self.answered: list[str] = []
        """Names of the commands that were answered, or not done, while it recorded."""

    @contextmanager
    def recording(self) -> Iterator[list[Command]]:
        self._recording, self.commands, self.answered = True, [], []
        try:
            yield self.commands
        finally:
            self._recording = False

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if self._recording and event.command and event.database_name in (self._database, "admin"):
            self.commands.append(dict(event.command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._answered(event)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._answered(event)

    def _answered(self, event: monitoring.CommandSucceededEvent | monitoring.CommandFailedEvent) -> None:
        if self._recording and event.database_name in (self._database, "admin"):
            self.answered.append(event.command_name)


def name_of(command: Command) -> str:
    return next(iter(command))


def selections(command: Command) -> Sequence[Command]:
    """Returns every filter and new document of a command; each of them must name its tenant."""
    match name_of(command):
        case "find":
            return [command["filter"]]
        case "findAndModify":
            return [command["query"]]
        case "update":
            return [update["q"] for update in command["updates"]]
        case "delete":
            return [delete["q"] for delete in command["deletes"]]
        case "insert":
            return list(command["documents"])
        case "aggregate":
            return list(_matches(command["pipeline"]))
        case "commitTransaction" | "abortTransaction" | "endSessions" | "killSessions" | "ping":
            return []
        case other:
            raise AssertionError(f"the filter of {other} is not checked here")


def _matches(pipeline: Sequence[Command]) -> Iterator[Command]:
    """Yields the first stage of a pipeline and of every pipeline inside it; each must begin with a $match."""
    assert "$match" in pipeline[0], pipeline
    yield pipeline[0]["$match"]
    for stage in pipeline:
        for name in ("$lookup", "$unionWith", "$graphLookup"):
            if name in stage:
                yield from _matches(stage[name]["pipeline"])
