"""The replicas of a run: servers at addresses that stay, which demand a certificate of Envoy and a token of callers."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from tests.chaos.programs import Program
from tests.chaos.servers import environment

START_TIME: Final = 120.0
_SERVING: Final = "turnkeeper: serving on"
_STREAMS: Final = re.compile(r"^turnkeeper_streams_active(?:{.*})? (\S+)$", re.MULTILINE)
_ERRORS: Final = re.compile(r'^turnkeeper_errors_total{.*code="(\w+)".*} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where a replica listens: the API, and two plain ones."""

    host: str
    api: int
    health: int
    metrics: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.api}"


class Replica:
    """One replica. Its name and address stay, its process is replaced."""

    def __init__(
        self, name: str, ports: Ports, *, flags: Sequence[str], variables: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.ports = ports
        command = [sys.executable, "-m", "turnkeeper", "serve", "--replica", name, "--log-format", "json"]
        where = ["--host", ports.host, "--port", ports.api, "--health-port", ports.health]
        metrics = ["--exporter", "prometheus", "--prometheus-port", ports.metrics]
        words = [*command, *map(str, [*where, *metrics]), *flags]
        self.program = Program(name, words, log=log, environ=environment(**variables))

    @property
    def address(self) -> str:
        """The address by which Envoy knows it."""
        return self.ports.address

    async def start(self) -> None:
        """Starts the replica. Returns once it serves. Raises RuntimeError."""
        self.program.start()
        await self.program.until_line(_SERVING, seconds=START_TIME)

    async def streams(self) -> int:
        """Returns the number of its open streams."""
        gauge = _STREAMS.search(await self._metrics())
        return int(float(gauge[1])) if gauge else 0

    async def errors(self) -> Mapping[str, int]:
        """Returns how many errors it has answered, by their codes."""
        return {code: int(float(count)) for code, count in _ERRORS.findall(await self._metrics())}

    async def _metrics(self) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.ports.metrics}/metrics") as response,
        ):
            return await response.text()
