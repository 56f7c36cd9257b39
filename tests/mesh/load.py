"""`python -m tests.mesh.load …`: the callers of a run, in a process of their own, until SIGTERM.

Then each finishes what it has begun. Exit status 0, also when calls failed: the run judges by their records.
"""

import argparse
import asyncio
import random
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import grpc

from tests.chaos import tenants
from tests.chaos.calls import Caller as ProbingCaller
from tests.chaos.calls import Replicas
from tests.chaos.record import CALLS, Recorder
from tests.chaos.spies import Loot, Spy
from tests.mesh.call_records import CallRecords
from tests.mesh.callers import Caller
from turnkeeper_client import Client, Credentials

CALLERS: Final = 64
"""Of both tenants together."""
LANES: Final = 2
"""Sessions of a caller at the same time."""
OWN_CONNECTION: Final = (("grpc.use_local_subchannel_pool", 1),)


def connect(address: str, *, ca: Path, identity: tenants.Identity) -> Client:
    """Returns a client as the guide has it behind a mesh: over TLS, with a token; the proxy makes calls again."""
    credentials = Credentials(ca=ca, token=lambda: identity.token)
    return Client(address, config="mesh", credentials=credentials, channel_options=OWN_CONNECTION)


async def run(arguments: argparse.Namespace) -> None:
    stop, records = asyncio.Event(), CallRecords(arguments.out)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        callers = []
        for number in range(arguments.callers):
            tenant = tenants.TENANTS[number % len(tenants.TENANTS)]
            who = tenants.identity(arguments.identity, tenant, tenants.USER)
            client = await stack.enter_async_context(connect(arguments.address, ca=arguments.ca, identity=who))
            rng = random.Random(f"{arguments.seed} {number}")
            callers.append(Caller(number // 2, tenant, client, records, rng=rng, stop=stop))
        async with asyncio.TaskGroup() as group:
            group.create_task(_spy(arguments, stop))
            for caller in callers:
                group.create_task(caller.live(lanes=arguments.lanes))
    records.close()


async def _spy(arguments: argparse.Namespace, stop: asyncio.Event) -> None:
    """Lets a spy of each tenant ask for what is the other's, until stopped."""
    loot = {tenant: Loot() for tenant in tenants.TENANTS}
    credentials = grpc.ssl_channel_credentials(arguments.ca.read_bytes())
    with Recorder(arguments.out / CALLS) as calls:
        async with (
            Replicas([arguments.address], credentials=credentials) as replicas,
            asyncio.TaskGroup() as group,
        ):
            for tenant in tenants.TENANTS:
                who = tenants.identity(arguments.identity, tenant, tenants.SPY)
                caller = ProbingCaller(
                    f"spy of {tenant}",
                    replicas.of(who),
                    calls.of(tenant),
                    rng=random.Random(f"{arguments.seed} spy of {tenant}"),
                    group=group,
                    until=0.0,
                )
                group.create_task(Spy(caller, mine=loot[tenant], theirs=loot[tenants.other(tenant)]).work(stop))


def words(address: str, *, ca: Path, identity: Path, seed: int, out: Path) -> Sequence[str]:
    """Returns the arguments of this program."""
    where = ["--address", address, "--ca", ca, "--identity", identity, "--seed", seed, "--out", out]
    return ["-m", "tests.mesh.load", *map(str, where)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mesh.load", description="The callers of a run.")
    parser.add_argument("--address", required=True, help="the proxy: HOST:PORT")
    parser.add_argument("--ca", type=Path, required=True, metavar="FILE", help="the CA of the proxy's certificate, PEM")
    parser.add_argument("--identity", type=Path, required=True, metavar="DIR", help="the folder of the callers' tokens")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the records")
    parser.add_argument("--callers", type=int, default=CALLERS)
    parser.add_argument("--lanes", type=int, default=LANES)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
