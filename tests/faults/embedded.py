"""Runs `serve --embedded`, whose database a test can kill, hold back and break."""

import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.harness import ServerProcess, Stubs
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.store.embedded import find_mongod

PROGRAM = """#!/bin/sh
while [ -e {held} ]; do sleep 0.02; done
[ -e {broken} ] && exit 14
exec {mongod} "$@"
"""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(slots=True, kw_only=True)
class Embedded:
    """A server with a private database in `folder`."""

    server: ServerProcess
    stubs: Stubs
    folder: Path
    held: Path
    """While this file exists, a database that is started does not come up."""
    broken: Path
    """While this file exists, a database that is started ends at once."""
    log: Path

    @property
    def mongod(self) -> int:
        """The database's process id."""
        return int((self.folder / "data/mongod.lock").read_text())

    def logged(self) -> str:
        return self.log.read_text()

    async def health(self) -> int:
        health: Any = health_pb2_grpc.HealthStub(self.stubs.channel)
        return int((await health.Check(health_pb2.HealthCheckRequest())).status)


@asynccontextmanager
async def embedded(
    tmp_path: Path, model: ScriptedModel, *flags: str, folder: Path | None = None
) -> AsyncIterator[Embedded]:
    """Starts the server; `folder` is its data folder, one in `tmp_path` by default."""
    folder = folder or tmp_path / "data"
    held, broken, programs = tmp_path / "held", tmp_path / "broken", tmp_path / "programs"
    programs.mkdir()
    program = programs / "mongod"
    names = {"held": held, "broken": broken, "mongod": find_mongod()}
    program.write_text(PROGRAM.format(**{name: shlex.quote(str(path)) for name, path in names.items()}))
    program.chmod(0o755)
    log = tmp_path / "server.log"
    with log.open("wb") as stderr:
        async with (
            harness.server_process(
                "",
                "turnkeeper",
                model,
                flags=("--embedded", "--data-dir", str(folder), "--agents", str(AGENTS), *flags),
                variables={"PATH": f"{programs}:{os.environ['PATH']}"},
                stderr=stderr.fileno(),
            ) as server,
            harness.connect(server.address) as stubs,
        ):
            yield Embedded(server=server, stubs=stubs, folder=folder, held=held, broken=broken, log=log)


async def has_health(served: Embedded, status: int) -> bool | None:
    """Returns True if the server has this health; None to be called again."""
    return await served.health() == status or None
