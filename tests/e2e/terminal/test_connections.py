"""The connection of commands to a server with TLS that checks tokens: flags, variables, profiles, refusals."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.terminal.programs import CommandLine
from tests.test_tools import FOLDER, ToolControl
from turnkeeper import dev_credentials
from turnkeeper_client import Client, Credentials

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = '[[reply]]\ntext = "Yes."'
ROLES = {"ada": ["caller"], "olga": ["caller", "approver", "operator"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `turnkeeper credentials dev` writes."""
    folder = tmp_path_factory.mktemp("credentials")
    dev_credentials.write(folder, ROLES, hosts=["localhost", "127.0.0.1"], lifetime=timedelta(days=1))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(mongo_uri: str, module_database: str, tool_control: ToolControl, folder: Path) -> AsyncIterator[str]:
    flags = {
        "identity": "jwt",
        "jwt-issuer": dev_credentials.ISSUER,
        "jwt-audience": dev_credentials.AUDIENCE,
        "jwt-keys": folder / "keys.json",
        "principals": folder / "principals.toml",
        "tls-certificate": folder / "server.pem",
        "tls-key": folder / "server-key.pem",
        "agents": AGENTS,
    }
    given = tuple(part for name, value in flags.items() for part in (f"--{name}", str(value)))
    variables = {"PYTHONPATH": str(tool_control.folder), FOLDER: str(tool_control.folder)}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.server_process(mongo_uri, module_database, model, flags=given, variables=variables) as server,
    ):
        yield server.address


def as_(name: str, address: str, folder: Path) -> CommandLine:
    """Returns the command line of a principal."""
    return CommandLine(address, ("--tls-ca", str(folder / "ca.pem"), "--token-file", str(folder / f"{name}.token")))


def begin(name: str, address: str, folder: Path) -> None:
    """Begins a session as a principal, in an event loop of its own."""

    async def create() -> None:
        token = (folder / f"{name}.token").read_text()
        credentials = Credentials(ca=folder / "ca.pem", token=lambda: token)
        async with Client(address, credentials=credentials) as client:
            await client.sessions.create("talker", session_id=f"of-{name}")

    asyncio.run(create())


async def test_mine_are_those_of_the_caller_also_for_an_operator(guarded: str, folder: Path) -> None:
    for name in ROLES:
        await asyncio.to_thread(begin, name, guarded, folder)

    async def ids(name: str, *flags: str) -> set[str]:
        listed = await as_(name, guarded, folder)("sessions", "--json", *flags)
        return {session["sessionId"] for session in listed.json["sessions"]}

    assert await ids("olga") == {"of-ada", "of-olga"}
    assert await ids("olga", "--mine") == {"of-olga"}
    assert await ids("ada") == await ids("ada", "--mine") == {"of-ada"}


async def test_a_refusal_tells_what_to_pass(guarded: str, folder: Path) -> None:
    plain = CommandLine(guarded)
    assert "if it expects TLS, pass --tls-ca" in (await plain("sessions", status=4)).errors
    unnamed = CommandLine(guarded, ("--tls-ca", str(folder / "ca.pem")))
    assert (
        "Pass --token-file, or --tls-certificate and --tls-key. (UNAUTHENTICATED)"
        in (await unnamed("sessions", status=5)).errors
    )
    denied = await as_("ada", guarded, folder)("turns", status=5)
    assert "(PERMISSION_DENIED)" in denied.errors
    missing = await as_("ada", guarded, folder)("show", "of-olga", status=5)
    assert "there is no session 'of-olga' that you may see" in missing.errors


async def test_a_profile_and_variables_stand_for_flags(
    guarded: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "profile.toml"
    file.write_text('[profile.ada]\naddress = "127.0.0.1:1"\ntls_ca = "ca.pem"\ntoken_file = "ada.token"\n')
    monkeypatch.setenv("TURNKEEPER_CLIENT_PROFILES", str(file))
    by_profile = await CommandLine(guarded, ("--profile", "ada"))("sessions")  # its own --address wins
    assert (await CommandLine(guarded, ("--profile", "ada"))("health")).output == "SERVING\n"
    assert "has no profile 'bob'" in (await CommandLine(guarded, ("--profile", "bob"))("health", status=2)).errors
    monkeypatch.setenv("TURNKEEPER_CLIENT_PROFILE", "ada")
    monkeypatch.setenv("TURNKEEPER_CLIENT_TOKEN_FILE", str(folder / "olga.token"))
    by_variable = await CommandLine(guarded)("sessions", "--mine")
    assert "of-ada" in by_profile.output
    assert "of-olga" not in by_profile.output
    assert "of-olga" in by_variable.output
