"""`python -m tests.chaos.flood --addresses A,B --identity DIR --seed N …`: more than servers can finish.

Messages begin at their times, whatever became of those before them, for two tenants in turn; each creates a session,
and is sent once. Every answer is recorded in a file. Prints how many were sent, accepted and refused. It ends by
itself, and knows only servers of this machine.
"""

import argparse
import asyncio
import ipaddress
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tests.chaos import tenants
from tests.chaos.calls import UNARY, Answer, Caller, Replicas
from tests.chaos.record import Recorder
from turnkeeper.pb.v1 import chat_pb2, message_pb2

AGENT: Final = "chaos"
CONNECTIONS: Final = 4
"""To each server: the calls of one are bounded."""
FLOODS: Final = "flood-*.jsonl"
"""The files of records."""
MOST_SECONDS: Final = 30.0
MOST_A_SECOND: Final = 1000.0
CLIENT: Final = "flood"
SESSIONS: Final = "flood-"
"""How the names of its sessions begin."""
REFUSED: Final = "OVERLOADED"


async def run(
    *, addresses: list[str], identity: Path, seed: int, rate: float, seconds: float, out: Path
) -> dict[str, int]:
    """Sends the messages. Returns how many were `sent`, `accepted` and `refused`."""
    _check(addresses, rate=rate, seconds=seconds)
    ends = Counter[str]()
    with Recorder(out) as record:
        async with Replicas(addresses * CONNECTIONS) as replicas, asyncio.TaskGroup() as group:
            rng = random.Random(f"{seed} flood")
            callers = [
                Caller(
                    CLIENT,
                    replicas.of(tenants.identity(identity, tenant, tenants.USER)),
                    record.of(tenant),
                    rng=rng,
                    group=group,
                    until=0.0,
                )
                for tenant in tenants.TENANTS
            ]
            began = time.monotonic()
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                turn, of = divmod(number, len(callers))
                replica = turn % len(replicas.stubs)
                group.create_task(_send(callers[of], f"{seed}-{turn}", replica=replica, ends=ends))
    accepted, refused = ends["OK"], ends[REFUSED]
    return {"sent": ends.total(), "accepted": accepted, "refused": refused}


async def _send(caller: Caller, label: str, *, replica: int, ends: Counter[str]) -> None:
    request = chat_pb2.SendMessageRequest(
        session_id=f"{SESSIONS}{label}",
        request_id=f"{SESSIONS}{label}",
        content=[message_pb2.Part(text=f"say {tenants.label(caller.tenant, f'flood-{label}')}: wave")],
        create_session=chat_pb2.CreateSessionParams(agent=AGENT),
    )
    request.wait.SetInParent()
    answer: Answer = await caller.try_once("SendMessage", request, replica, timeout=UNARY)
    ends[answer.reason or answer.status] += 1


def _check(addresses: list[str], *, rate: float, seconds: float) -> None:
    """Raises ValueError for a server elsewhere, and for a flood that would be too much or too long."""
    for address in addresses:
        if not ipaddress.ip_address(address.rpartition(":")[0]).is_loopback:
            raise ValueError(f"{address} is no server of this machine")
    if not (0 < rate <= MOST_A_SECOND and 0 < seconds <= MOST_SECONDS):
        raise ValueError(f"at most {MOST_A_SECOND:g} messages a second, for {MOST_SECONDS:g} s")


def main() -> None:
    """Runs, and prints the counts as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.flood", description="More than servers can finish.")
    parser.add_argument("--addresses", required=True, help="HOST:PORT,… of this machine")
    parser.add_argument("--identity", type=Path, required=True, metavar="DIR", help="the folder of the callers' tokens")
    parser.add_argument("--seed", type=int, required=True, help="the messages of another seed are others")
    parser.add_argument("--rate", type=float, required=True, help="messages a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the records")
    arguments = vars(parser.parse_args())
    print(json.dumps(asyncio.run(run(addresses=arguments.pop("addresses").split(","), **arguments))))


if __name__ == "__main__":
    main()
