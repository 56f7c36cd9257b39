"""Measures what the check of a credential adds to a small call, over the same TLS."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row
from tests.bench.jobs.identity import list_agents
from tests.bench.parts import Served
from turnkeeper import dev_credentials

CONCURRENCY = 16
CALLS = 4_000
FEW_CALLS = 400


@dataclass(frozen=True, slots=True)
class Side:
    """One kind of caller. `tokens`: how many it uses by turns."""

    about: str
    flags: tuple[str, ...] = ()
    certificate: str = ""
    tokens: int = 0


def sides(folder: Path, calls: int) -> dict[str, Side]:
    """Returns the kinds of callers. All connect by TLS."""
    files = ("--principals", str(folder / "principals.toml"))
    issuer = ("--jwt-issuer", dev_credentials.ISSUER, "--jwt-audience", dev_credentials.AUDIENCE)
    jwt = ("--identity", "jwt", *files, *issuer, "--jwt-keys", str(folder / "keys.json"))
    mtls = ("--identity", "mtls", *files, "--tls-client-ca", str(folder / "ca.pem"))
    return {
        "none": Side("without a check"),
        "jwt": Side("with a token that was checked before", jwt, tokens=1),
        "jwt_new": Side("with a new token each time", jwt, tokens=calls),
        "mtls": Side("with a certificate", mtls, certificate="ada"),
    }


async def identity(bench: Bench) -> list[Row]:
    """Measures calls of ListAgents on warm connections. Their opening is part of each round."""
    calls = FEW_CALLS if bench.scale.quick else CALLS
    folder = bench.parts.folder / "credentials"
    folder.mkdir()
    dev_credentials.write(folder, {"ada": ["caller"]}, hosts=["127.0.0.1"], lifetime=timedelta(days=1))
    tls = ("--tls-certificate", str(folder / "server.pem"), "--tls-key", str(folder / "server-key.pem"))
    kinds = sides(folder, calls)
    async with AsyncExitStack() as stack:
        servers = {
            name: await stack.enter_async_context(
                bench.parts.server(f"identity-{name}", *tls, *side.flags, database=f"identity-{name}")
            )
            for name, side in kinds.items()
        }
        costs = await bench.alternate(
            {name: partial(_microseconds, bench, servers[name], side, folder, calls) for name, side in kinds.items()}
        )
    return rows_of(kinds, costs)


def rows_of(kinds: dict[str, Side], costs: dict[str, list[float]]) -> list[Row]:
    """Returns the cost of a call without a check, and what each check adds to it, round by round."""
    plain = costs["none"]
    rows = [row("identity.none", f"server CPU of a call over TLS, {kinds['none'].about}", plain, unit="us")]
    for name, side in kinds.items():
        if name != "none":
            added = [cost - floor for cost, floor in zip(costs[name], plain, strict=True)]
            rows.append(row(f"identity.{name}", f"added server CPU of a call {side.about}", added, unit="us"))
    return rows


async def _microseconds(bench: Bench, server: Served, side: Side, folder: Path, calls: int) -> float:
    async with bench.window(server) as spent:
        count = await bench.parts.load.run(
            list_agents,
            address=server.address,
            folder=str(folder),
            certificate=side.certificate,
            tokens=side.tokens,
            count=calls,
            concurrency=CONCURRENCY,
        )
    return 1e6 * spent.server / int(count)


MEASURES = (Measure("identity", "what the check of a credential adds to a call", identity),)
