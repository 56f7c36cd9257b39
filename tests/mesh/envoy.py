"""The proxy of a run: its process, and what its own pages tell of it."""

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.chaos.programs import REPOSITORY, Program
from tests.chaos.servers import environment

INSTALLED: Final = "build/envoy.stamp"
PROGRAM: Final = REPOSITORY / "build" / "envoy" / "bin" / "envoy"
_BY_ANSWERS: Final = ("consecutive_5xx", "consecutive_gateway_failure", "success_rate", "failure_percentage")
"""Kinds of outlier detection that count what a replica answers."""
_PATIENCE: Final = 60.0
_OFTEN: Final = 0.05


class NoEnvoy(Exception):
    """Envoy cannot be installed or started; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Host:
    """A replica as Envoy has it. `active`: requests under way, streams included."""

    address: str
    healthy: bool
    active: int


async def install() -> None:
    """Installs Envoy, from its own lock, if it is missing. Raises NoEnvoy."""
    make = await asyncio.create_subprocess_exec("make", "--no-print-directory", "-s", INSTALLED, cwd=REPOSITORY)
    if await make.wait() != 0:
        raise NoEnvoy("Envoy (tests/deploy/envoy.lock) cannot be installed; the reason is above")


class Envoy:
    """Envoy with one main file. `address` is where callers connect; `admin` has its own pages."""

    def __init__(self, file: Path, *, address: str, admin: str, log: Path) -> None:
        self.file = file
        self.address = address
        command = [
            str(PROGRAM),
            "-c",
            str(file),
            "--log-level",
            "warning",
            "--concurrency",
            "2",
            "--disable-hot-restart",
        ]
        self.program = Program("envoy", command, log=log, environ=environment())
        self._admin = f"http://{admin}"

    async def start(self) -> None:
        """Starts Envoy. Raises NoEnvoy if it does not come up."""
        self.program.start()
        deadline = time.monotonic() + _PATIENCE
        while self.program.running and time.monotonic() < deadline:
            try:
                if (await self._get("/server_info"))["state"] == "LIVE":
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(_OFTEN)
        raise NoEnvoy(f"Envoy does not start; its output:\n{self.program.output()[-2000:]}")

    @property
    def started(self) -> str:
        """Which process this is: its id, and its start in ticks of the kernel since the machine's."""
        fields = Path(f"/proc/{self.program.pid}/stat").read_text().rpartition(")")[2].split()
        return f"{self.program.pid} at tick {fields[19]} ({os.sysconf('SC_CLK_TCK')} a second)"

    async def used_file(self) -> Path:
        """Returns the path of the file that Envoy names as its own."""
        return Path((await self._get("/server_info"))["command_line_options"]["config_path"])

    async def hosts(self) -> Mapping[str, Host]:
        """Returns the replicas by their HOST:PORT."""
        statuses = (await self._get("/clusters?format=json")).get("cluster_statuses", [])
        hosts = [_host(status) for cluster in statuses for status in cluster.get("host_statuses", [])]
        return {host.address: host for host in hosts}

    async def until_out(self, address: str, *, seconds: float) -> float:
        """Returns after how many seconds the replica gets no more calls. Raises TimeoutError."""
        return await self._until(address, healthy=False, seconds=seconds)

    async def until_in(self, address: str, *, seconds: float = _PATIENCE) -> float:
        """Returns after how many seconds the replica gets calls. Raises TimeoutError."""
        return await self._until(address, healthy=True, seconds=seconds)

    async def ejections(self) -> Mapping[str, int]:
        """Returns the number of ejections by what replicas answered, by kind. `would`: those that are off."""
        stats = await self._stats("outlier_detection")
        enforced = {kind: stats.get(f"ejections_enforced_{kind}", 0) for kind in _BY_ANSWERS}
        detected = sum(stats.get(f"ejections_detected_{kind}", 0) for kind in _BY_ANSWERS)
        return {**enforced, "would": detected - sum(enforced.values())}

    async def retries(self) -> int:
        """Returns how many calls Envoy has made again."""
        return (await self._stats("upstream_rq_retry")).get("upstream_rq_retry", 0)

    async def serials(self) -> set[int]:
        """Returns the serial numbers of the certificates that Envoy shows, to callers and to replicas."""
        certificates = (await self._get("/certs")).get("certificates", [])
        return {int(chain["serial_number"], 16) for one in certificates for chain in one.get("cert_chain", [])}

    async def _until(self, address: str, *, healthy: bool, seconds: float) -> float:
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            while (await self.hosts())[address].healthy != healthy:  # noqa: ASYNC110 - it sends no notification
                await asyncio.sleep(_OFTEN)
        return time.monotonic() - began

    async def _stats(self, words: str) -> Mapping[str, int]:
        """Returns the counters of all clusters with these words in their name, by the last part of it."""
        counted: dict[str, int] = {}
        for stat in (await self._get(f"/stats?format=json&filter=cluster.*{words}"))["stats"]:
            if "value" in stat:
                name = stat["name"].rpartition(".")[2]
                counted[name] = counted.get(name, 0) + int(stat["value"])
        return counted

    async def _get(self, path: str) -> Any:
        async with aiohttp.ClientSession() as session, session.get(f"{self._admin}{path}") as response:
            return await response.json(content_type=None)


def _host(status: Mapping[str, Any]) -> Host:
    where = status["address"]["socket_address"]
    health = {key: value for key, value in status["health_status"].items() if key != "eds_health_status"}
    stats = {stat["name"]: int(stat.get("value", 0)) for stat in status["stats"]}
    return Host(f"{where['address']}:{where['port_value']}", not any(health.values()), stats.get("rq_active", 0))
