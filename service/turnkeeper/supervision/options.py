"""The settings that a supervisor itself needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, Self

from turnkeeper import durations

PREFIX: Final = "TURNKEEPER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorOptions:
    """The supervisor's part of the settings, without pydantic, which would add 15 MiB to a process of 37."""

    host: str
    port: int
    health_host: str | None
    health_port: int | None
    jwks_port: int | None
    processes: int
    replica: str
    prometheus_port: int
    mongodb_uri: str = field(repr=False)
    embedded: bool
    data_dir: Path
    local_model: bool
    openai_base_url: str = field(repr=False)
    log_level: str
    log_format: str
    drain_delay: timedelta
    drain_grace: timedelta

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Reads the variables that `settings.environment` has written from checked settings."""

        def value(name: str) -> str:
            return environ.get(PREFIX + name, "")

        return cls(
            host=value("HOST"),
            port=int(value("PORT")),
            health_host=value("HEALTH_HOST") or None,
            health_port=int(value("HEALTH_PORT")) if value("HEALTH_PORT") else None,
            jwks_port=int(value("JWKS_PORT")) if value("JWKS_PORT") else None,
            processes=int(value("PROCESSES")),
            replica=value("REPLICA"),
            prometheus_port=int(value("PROMETHEUS_PORT")),
            mongodb_uri=value("MONGODB_URI"),
            embedded=value("EMBEDDED") == "true",
            data_dir=Path(value("DATA_DIR")),
            local_model=value("LOCAL_MODEL") == "true",
            openai_base_url=value("OPENAI_BASE_URL"),
            log_level=value("LOG_LEVEL"),
            log_format=value("LOG_FORMAT"),
            drain_delay=durations.parse(value("DRAIN_DELAY")),
            drain_grace=durations.parse(value("DRAIN_GRACE")),
        )

    def replica_name(self, number: int) -> str:
        """Returns the name of replica `number`; the first one is 1."""
        return f"{self.replica}-{number}"

    def of_replica(self, number: int, *, ports: Mapping[str, int], mongodb_uri: str) -> dict[str, str]:
        """Returns the variables in which replica `number` differs from the supervisor.

        `ports`: what the supervisor holds, by setting, such as `HEALTH_PORT`.
        """
        metrics = self.prometheus_port + number - 1 if self.prometheus_port else 0
        return {
            **{f"{PREFIX}{name}": str(port) for name, port in ports.items()},
            f"{PREFIX}PROCESSES": "1",
            f"{PREFIX}REPLICA": self.replica_name(number),
            f"{PREFIX}PROMETHEUS_PORT": str(metrics),
            f"{PREFIX}MONGODB_URI": mongodb_uri,
            f"{PREFIX}EMBEDDED": "false",
        }
