"""The documents' programs and commands work as documented, on a real server."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pytest
import pytest_asyncio
from grpc import aio

from tests import harness
from tests.demo import ports
from tests.e2e.support import service_configs
from tests.unit.docs.pages import DOCS, PAGES, ROOT, blocks
from turnkeeper.dev.models import SCRIPT
from turnkeeper.model.script_file import load_script
from turnkeeper.model.typed_calls import TypedCalls
from turnkeeper.pb.v1 import agent_pb2
from turnkeeper_client import Client

ADDRESS = "127.0.0.1:50051"
"""Where the documents expect the server of `turnkeeper dev`."""
NO_CREDENTIALS = ("--identity", "none")
"""As `turnkeeper dev`: the programs have no tokens, so that their sessions have no twins in a second tenant either."""
HALF, WHOLE = "The capital of France is one that no one", "Paris is the capital of France."
"""What the model writes until its server is killed, and what it writes anew."""
ANEW = "(the answer begins anew)"
CUT = f"""
[[reply]]
match = "known for"
text = "Its museums."

[[reply]]
text = "{HALF} has ever reached the end of."
chunk = 1
fail = "stall"
fail_after = {len(HALF)}
times = {{times}}

[[reply]]
text = "{WHOLE}"
"""
WAITING_AGENTS = "".join(
    f"""
[[agent]]
name = "{name}"
instructions = "Use your tools."
tools = ["current_time", "send_message"]
policy = [{{ tool = "current_time", action = "auto" }}, {{ tool = "send_message", action = "approve" }}]
"""
    for name in ("assistant", "clerk")
)
WAITING = """
[[reply]]
text = "Let me look."
tool_calls = [{ name = "current_time", arguments = {} }]

[[reply]]
after_tools = 1
text = "I send it."
tool_calls = [{ name = "send_message", arguments = { to = "Ada", text = "Wait." } }]

[[reply]]
after_tools = 2
text = "Done."
"""
AT_ONCE = 3
"""Programs that run at the same time."""
TIME = 40
SERVICE_CONFIGS = {
    name: (ROOT / service_configs.FOLDER / f"{name}.json").read_text() for name in service_configs.CONFIGS
}
TOOLS = {"Go": ("go",), "TypeScript": ("node", "npm"), "Java": ("java", "mvn")}
"""What must be installed to run each language's part of the guide; each fetches the rest from its registry."""
PACKAGES = ROOT / "build/clients"
"""Where the tools of other languages keep what they fetched and compiled."""


async def run(
    *command: str, stdin: str = "", folder: Path = ROOT, seconds: float = TIME, **variables: str
) -> tuple[int | None, str]:
    """Runs a command. Returns its exit status and its output."""
    async with _slots(asyncio.get_running_loop()):
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            printed, _ = await asyncio.wait_for(process.communicate(stdin.encode()), seconds)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode, printed.decode()


@lru_cache(maxsize=1)
def _slots(_: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
    """Returns the slots of a test: each has a loop of its own."""
    return asyncio.Semaphore(AT_ONCE)


class Printed:
    """A Python program whose output is read while it runs."""

    def __init__(self, code: str) -> None:
        self.output = ""
        self._code = code
        self._more = asyncio.Condition()
        self._status: int | None = None

    async def run(self) -> None:
        """Runs the program; kills it if it does not end in time."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", self._code),
            cwd=ROOT / "build",  # for the files that a program writes
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(TIME):
                while read := await process.stdout.read(1024):
                    async with self._more:
                        self.output += read.decode()
                        self._more.notify_all()
                self._status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            async with self._more:
                self._more.notify_all()

    async def has(self, text: str) -> None:
        """Waits until the text was printed."""
        async with asyncio.timeout(TIME), self._more:
            await self._more.wait_for(lambda: text in self.output)

    async def ended(self) -> int | None:
        """Waits until the program has ended. Returns its exit status."""
        async with asyncio.timeout(TIME), self._more:
            await self._more.wait_for(lambda: self._status is not None)
        return self._status


def programs(*, without: Sequence[str]) -> Mapping[str, str]:
    """Returns every complete Python program of the documents, by page and position."""
    return {
        f"{page.relative_to(ROOT)}, program {number}": program
        for page in PAGES
        if page.name not in without
        for number, program in enumerate(
            (block for block in blocks(page.read_text(encoding="utf-8"), "python") if "asyncio.run(" in block), start=1
        )
    }


@pytest_asyncio.fixture
async def address(mongo_uri: str, database_name: str) -> AsyncIterator[str]:
    async with (
        harness.scripted(TypedCalls(load_script(SCRIPT))) as model,
        harness.serving(mongo_uri, database_name, model, identity="none") as running,
    ):
        yield running.address


async def test_every_program_runs(address: str) -> None:
    examples = programs(without=("tools-and-agents.md", "tools-in-any-language.md", "authentication.md"))
    assert len(examples) >= 12
    ended = await asyncio.gather(
        *(
            run(sys.executable, "-", stdin=program.replace(ADDRESS, address), folder=ROOT / "build")
            for program in examples.values()
        )
    )
    failed = {name: printed for name, (status, printed) in zip(examples, ended, strict=True) if status != 0}
    assert not failed, "\n".join(f"{name}:\n{printed}" for name, printed in failed.items())


async def test_programs_that_show_answers_run_on_turns_with_a_tool_call_and_on_turns_that_wait(
    mongo_uri: str, database_name: str, tmp_path: Path
) -> None:
    """Each turn asks for a tool that runs, and then for one that a person must approve."""
    agents = tmp_path / "agents.toml"
    agents.write_text(WAITING_AGENTS)
    examples = {
        name: code
        for name, code in programs(without=("tools-and-agents.md", "authentication.md", "client-tools.md")).items()
        if "text_of(" in code or ".text()" in code
    }
    assert len(examples) >= 5
    async with (
        harness.scripted(WAITING) as model,
        harness.serving(mongo_uri, database_name, model, agents=agents, identity="none") as running,
    ):
        ended = await asyncio.gather(
            *(
                run(sys.executable, "-", stdin=program.replace(ADDRESS, running.address), folder=ROOT / "build")
                for program in examples.values()
            )
        )
    for name, (status, printed) in zip(examples, ended, strict=True):
        if status:  # a second message is refused while the first one's turn waits: one paragraph tells so
            assert printed.splitlines()[-1].startswith("turnkeeper_client.errors.Aborted: TURN_IN_PROGRESS: "), name
            assert printed.count("Traceback") == 1, f"{name}: {printed}"


async def test_the_first_session_can_be_pasted(address: str) -> None:
    """An interpreter that is typed into ends a function at an empty line."""
    (program,) = blocks((ROOT / "README.md").read_text(), "python")
    status, printed = await run(sys.executable, "-i", stdin=program.replace(ADDRESS, address))
    assert status == 0
    assert "I am a script" in printed
    assert "Error" not in printed


async def test_programs_that_print_an_answer_are_exact_when_its_server_is_killed(
    mongo_uri: str, database_name: str
) -> None:
    """Each program as it stands. What was printed of an answer that does not count stands on lines of its own."""
    port = ports.free_port()
    flags = (*NO_CREDENTIALS, "--port", str(port))
    pages = ("README.md", "docs/guide/first-session.md", "clients/python/README.md")
    codes = {page: blocks((ROOT / page).read_text(), "python") for page in pages}
    answers = {page: next(code for code in codes[page] if ".text()" in code) for page in pages}
    async with harness.scripted(CUT.replace("{times}", str(len(answers)))) as model, asyncio.TaskGroup() as group:
        async with harness.server_process(mongo_uri, database_name, model, flags=flags) as killed:
            running = {name: Printed(code.replace(ADDRESS, killed.address)) for name, code in answers.items()}
            for program in running.values():
                group.create_task(program.run())
            for program in running.values():
                await program.has(HALF)
        async with (
            harness.server_process(mongo_uri, database_name, model, flags=flags) as server,
            Client(server.address) as client,
        ):
            for name, program in running.items():
                assert await program.ended() == 0, program.output
                assert f"{HALF}\n{ANEW}\n{WHOLE}\n" in program.output, f"{name}: {program.output}"
            stored = [
                message.content[0].text
                async for session in client.sessions.list()
                async for message in client.session(session.session_id).messages(newest_first=True)
            ]
    assert running["README.md"].output == f"{HALF}\n{ANEW}\n{WHOLE}\n"
    assert stored.count(WHOLE) == len(answers)


async def test_every_command_of_the_shells_tour_works(address: str) -> None:
    page = (DOCS / "guide/polyglot.md").read_text()
    commands = "\n".join(blocks(page, "sh")).replace(ADDRESS, address)
    status, printed = await run("bash", "-euo", "pipefail", "-c", commands)
    assert status == 0, printed
    methods = set(re.findall(r"turnkeeper\.v1\.(\w+Service/\w+)", commands))
    works = re.findall(r"^\| (\w+) \| (\w+) \| works \|$", (DOCS / "reference/status.md").read_text(), re.MULTILINE)
    assert methods == {f"{service}/{method}" for service, method in works}


@pytest.mark.skipif("CLIENTS_CHECK" not in os.environ, reason="compiles for a minute: `make clients-check` runs it")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", TOOLS)
async def test_the_client_of_a_language_is_generated_compiled_and_runs(
    language: str, address: str, tmp_path: Path
) -> None:
    missing = [tool for tool in TOOLS[language] if shutil.which(tool) is None]
    if missing:
        pytest.fail(f"`make clients-check` needs {', '.join(missing)}: install them")
    page = (DOCS / "guide/polyglot.md").read_text().replace("path/to/turnkeeper", str(ROOT)).replace(ADDRESS, address)
    variables = {
        "PATH": f"{_protoc(tmp_path)}:{os.environ['PATH']}",
        "GOPATH": str(PACKAGES / "go"),
        "GOCACHE": str(PACKAGES / "go-build"),
        "GOFLAGS": "-modcacherw",
        "npm_config_cache": str(PACKAGES / "npm"),
        "MAVEN_OPTS": f"-Dmaven.repo.local={PACKAGES / 'maven'}",
    }

    async def runs(commands: str, **more: str) -> tuple[int | None, str]:
        shell = ("bash", "-euo", "pipefail", "-c", commands)
        return await run(*shell, folder=tmp_path, seconds=580, **variables, **more)

    part = page.partition(f"\n## {language}\n")[2].partition("\n## ")[0]
    for name, text in re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```", part, re.DOTALL | re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (commands,) = blocks(part, "shell")
    status, printed = await runs(commands)
    assert status == 0, printed
    assert "I am a script, not a real model." in printed
    commands = service_configs.put_into_program(language, page, tmp_path, address=address, root=ROOT)
    for config in SERVICE_CONFIGS.values():
        status, printed = await runs(commands, **{service_configs.VARIABLE: config})
        assert status == 0, printed
        assert "I am a script, not a real model." in printed
    status, printed = await runs(commands, **{service_configs.VARIABLE: service_configs.hurried(config)})
    assert status != 0
    assert re.search("(?i)deadline_?exceeded", printed), printed


@pytest.mark.parametrize("name", SERVICE_CONFIGS)
async def test_the_lines_for_python_give_a_channel_the_service_config(address: str, name: str) -> None:
    """The option with each text, and the argument of our client."""
    page = (DOCS / "guide/polyglot.md").read_text()
    line, *arguments = service_configs.lines(page)["Python"]
    for text, works in ((SERVICE_CONFIGS[name], True), (service_configs.hurried(SERVICE_CONFIGS[name]), False)):
        option = eval(line, {"text": text})
        async with aio.insecure_channel(address, options=[option]) as channel:
            listed = harness.Stubs(channel).agents.ListAgents(agent_pb2.ListAgentsRequest())
            if works:
                assert (await listed).agents
            else:
                with pytest.raises(aio.AioRpcError, match="DEADLINE_EXCEEDED"):
                    await listed
    (argument,) = (argument for argument in arguments if name in argument)
    async with Client(address, **eval(f"dict({argument})")) as client:
        assert [agent async for agent in client.agents.list()]


def _protoc(folder: Path) -> Path:
    """Returns a folder with a `protoc`: the installed one, or that of grpcio-tools, which runs plugins as well."""
    if installed := shutil.which("protoc"):
        return Path(installed).parent
    program = folder / "bin/protoc"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m grpc_tools.protoc "$@"\n')
    program.chmod(0o755)
    return program.parent


async def test_the_tool_the_agent_and_the_script_of_the_guide(
    mongo_uri: str, database_name: str, tmp_path: Path
) -> None:
    page = (DOCS / "guide/tools-and-agents.md").read_text()
    project, agents, script = blocks(page, "toml")
    module, program = blocks(page, "python")
    (shown,) = blocks(page, "text")
    package = tmp_path / "shop_tools"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "orders.py").write_text(module)
    _pretend_to_install(project, tmp_path)
    (tmp_path / "agents.toml").write_text(agents)
    async with (
        harness.scripted(script) as model,
        harness.server_process(
            mongo_uri,
            database_name,
            model,
            flags=(*NO_CREDENTIALS, "--agents", str(tmp_path / "agents.toml")),
            variables={"PYTHONPATH": str(tmp_path)},
        ) as server,
    ):
        status, printed = await run(sys.executable, "-", stdin=program.replace(ADDRESS, server.address))
    assert status == 0, printed
    assert printed == shown


def _pretend_to_install(project: str, folder: Path) -> None:
    """Writes what an installer writes beside a package: its name and its entry points."""
    (entry,) = re.findall(r'\[project\.entry-points\."turnkeeper\.tools"\]\n(\w+) = "([\w.]+)"', project)
    info = folder / "shop_tools-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-tools\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[turnkeeper.tools]\n{entry[0]} = {entry[1]}\n")


def test_the_commands_that_are_named_are_there() -> None:
    for name in ("turnkeeper", "grpcurl", "buf"):
        assert shutil.which(name, path=str(Path(sys.executable).parent))
