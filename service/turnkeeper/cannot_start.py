"""The errors of `app.serving` whose message tells the operator why the server cannot start, and what to do."""

from typing import Final

from turnkeeper.errors import SessionError
from turnkeeper.model.weights import LocalModelError
from turnkeeper.start_errors import NameTaken, PortTaken, SettingError
from turnkeeper.store.embedded import EmbeddedDatabaseError
from turnkeeper.store.mongo.indexes import UnfitDatabase
from turnkeeper.telemetry.setup import TelemetryError
from turnkeeper.watched_file import BadFile

ERRORS: Final = (
    SettingError,
    BadFile,
    EmbeddedDatabaseError,
    LocalModelError,
    UnfitDatabase,
    SessionError,
    NameTaken,
    PortTaken,
    TelemetryError,
)
