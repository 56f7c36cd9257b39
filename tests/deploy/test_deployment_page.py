"""The commands of the page about deploying run as they stand, in order, in an empty folder."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.deploy import tools
from tests.guarded_database import ADMIN, GuardedDatabase, guarded_database
from tests.unit.docs.pages import DOCS, blocks
from turnkeeper.child_processes import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = (DOCS / "operations/deployment.md").read_text(encoding="utf-8")
TIME = 600
PREFIXES = range(2_000, 3_200)
"""Of the ports of replicas, without their last digit: below those that the system gives out."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedDatabase]:
    async with guarded_database(tmp_path_factory.mktemp("guarded")) as database:
        yield database


def free_prefix(start: int) -> str:
    """Returns a number to which 1, 2 and 3 can be appended: all three are free ports."""
    for prefix in PREFIXES[start:]:
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for digit in (1, 2, 3):
                held.enter_context(socket.create_server(("127.0.0.1", prefix * 10 + digit)))
            return str(prefix)
    raise RuntimeError("there are no three free ports in a row")


def with_free_ports(commands: str) -> str:
    """Returns the commands with ports that nothing on this machine has."""
    start = os.getpid() % 500
    for port, free in (("5005", free_prefix(start)), ("5006", free_prefix(start + 600))):
        commands = re.sub(rf"\b{port}(?=[123$])", free, commands)
    for port in ("8443", "9901"):
        commands = re.sub(rf"\b{port}\b", str(free_port()), commands)
    return commands


def programs(folder: Path) -> Mapping[str, str]:
    """Returns the variables by which the programs that the page names are found."""
    folder.mkdir()
    for name, program in (("helm", tools.helm()), ("envoy", tools.ENVOY), ("mongosh", tools.mongosh())):
        (folder / name).symlink_to(program)
    tools.need("envsubst", "install gettext-base")
    tools.need("openssl", "install it")
    return {"PATH": f"{folder}:{os.environ['PATH']}", "TURNKEEPER": str(tools.ROOT)}


async def test_the_commands_run_in_order_in_an_empty_folder(guarded: GuardedDatabase, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    commands = with_free_ports("\n".join(blocks(PAGE, "sh")))
    async with harness.scripted('[[reply]]\ntext = "Welcome."') as model:
        variables = harness.environment(model, ADMIN_URI=guarded.uri(ADMIN), **programs(tmp_path / "programs"))
        with subprocess.Popen(  # noqa: ASYNC220 - it is waited for in a thread
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as shell:
            try:
                printed, _ = await asyncio.to_thread(shell.communicate, timeout=TIME)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
    logs = {file.name: file.read_text()[-1500:] for file in folder.glob("*.log")}
    assert shell.returncode == 0, f"{printed}\n{logs}"
    assert "the user turnkeeper has the role turnkeeper of the database turnkeeper\n" in printed
    assert '"text": "Welcome."' in printed
    assert printed.count('"session_id": "first"') >= 2
    assert "kind: VirtualService" in (folder / "manifests.yaml").read_text()


async def test_a_new_replica_set_gets_its_members_and_users(tmp_path: Path) -> None:
    """As Compose makes it: on the machine of the first member, and again without harm."""
    for name in ("admin", "turnkeeper"):
        (tmp_path / name).write_text(f"{name}-secret\n")
    async with guarded_database(tmp_path, prepared=False) as database:
        variables = {
            "MEMBERS": database.at,
            "REPLICA_SET": "orders",
            "ADMIN_PASSWORD_FILE": str(tmp_path / "admin"),
            "TURNKEEPER_PASSWORD_FILE": str(tmp_path / "turnkeeper"),
        }
        files = [part for name in ("replica-set", "users") for part in ("--file", tools.DEPLOY / f"mongodb/{name}.js")]
        for _ in range(2):
            uri = f"mongodb://{database.at}/?directConnection=true"
            printed = tools.run(tools.mongosh(), "--quiet", uri, *files, **variables)
            assert printed.splitlines() == [
                "the replica set has 1 members",
                "the user turnkeeper has the role turnkeeper of the database turnkeeper",
            ]
