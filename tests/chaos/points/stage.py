"""The environment of all trials: a database, a model, recorded tools, and a server without faults."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests import harness
from tests.chaos.points.script import AGENTS
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel

LEASE = 2.0
"""Seconds."""
SERVICE = ("turnkeeper",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The environment of a trial. `program` is the service, or a broken version of it."""

    mongo_uri: str
    database: str
    model: ScriptedModel
    tool_control: ToolControl
    program: tuple[str, ...] = SERVICE
    flags: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def server(self, **variables: str) -> AsyncIterator[harness.ServerProcess]:
        """Starts a server with the stage's agents and tools, for this block alone."""
        async with harness.server_process(
            self.mongo_uri,
            self.database,
            self.model,
            flags=("--agents", str(self._agents()), "--lease", f"{LEASE:g}s", "--log-level", "ERROR", *self.flags),
            variables={**self.tool_control.variables, **self.variables, **variables},
            program=self.program,
        ) as server:
            yield server

    def _agents(self) -> Path:
        file = self.tool_control.folder / "agents.toml"
        file.write_text(AGENTS, encoding="utf-8")
        return file

    def in_database(self, database: str, *, program: tuple[str, ...], tool_control: ToolControl) -> "Stage":
        """Returns the same stage for another program, in a database and with tools of its own."""
        return replace(self, database=database, program=program, tool_control=tool_control)
