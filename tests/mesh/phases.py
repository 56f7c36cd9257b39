"""The phases of a run, by their names on the command line."""

from collections.abc import Mapping
from typing import Final

ANSWERS: Final = "answers"
RESTARTS: Final = "restarts"
KILLS: Final = "kills"
FREEZE: Final = "freeze"
SILENCE: Final = "silence"
DATABASE: Final = "database"
PHASES: Final[Mapping[str, str]] = {
    ANSWERS: "answers, waits, new certificates, gRPC-Web",
    RESTARTS: "replicas are restarted",
    KILLS: "replicas are killed",
    FREEZE: "a replica is frozen",
    SILENCE: "a replica accepts and never answers",
    DATABASE: "the database is frozen",
}
"""What each phase does, in their order."""
