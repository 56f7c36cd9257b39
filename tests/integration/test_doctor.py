"""`turnkeeper doctor`: each fault is made with a real part, and named in one sentence with what to do."""

import asyncio
import json
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness
from tests.fail_points import Client, fail_point
from tests.faults.disks import small_disk
from tests.guarded_database import ADMIN, SERVICE, GuardedDatabase, guarded_database
from turnkeeper import dev_credentials
from turnkeeper.command_line import main
from turnkeeper.store.mongo.examination import examine
from turnkeeper.terminal.doctor import FaultFound, check_clock

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
text = "Hi."
"""
PARTS = ["callers", "ports", "agents", "tools", "model", "disks", "database"]


class Doctor:
    """Runs `turnkeeper doctor`. Its settings are in order but for those that a test gives."""

    def __init__(self, patch: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str], uri: str, model: str) -> None:
        self._patch = patch
        self._printed = printed
        self._uri = uri
        self._model = model
        self.unchecked: list[str] = []
        """The parts that the last run did not check."""

    async def __call__(self, *flags: str, **variables: str) -> tuple[int, dict[str, str]]:
        """Returns the exit status, and the sentence of each fault by its part."""
        for name in list(os.environ):
            if name.startswith(("TURNKEEPER_", "OPENAI_", "MONGODB_")):
                self._patch.delenv(name)
        well = {"OPENAI_BASE_URL": self._model, "OPENAI_API_KEY": "a-key", "MONGODB_URI": self._uri}
        for name, value in {**well, "TURNKEEPER_PORT": "0", "TURNKEEPER_DATABASE": "doctor", **variables}.items():
            self._patch.setenv(name, value)
        status = await asyncio.wait_for(asyncio.to_thread(main, ["doctor", "--json", *flags]), 40)
        output = self._printed.readouterr()
        findings = json.loads(output.out)
        faults = {finding["part"]: finding["message"] for finding in findings if finding["ok"] is False}
        self.unchecked = [finding["part"] for finding in findings if finding["ok"] is None]
        assert status == (1 if faults else 0)
        if "settings" not in faults:
            assert [finding["part"] for finding in findings] == PARTS
        assert all("\n" not in sentence for sentence in faults.values())
        assert "Traceback" not in output.err
        return status, faults

    async def only_fault(self, *flags: str, **variables: str) -> tuple[str, str]:
        """Returns the part and the sentence of the one fault."""
        status, faults = await self(*flags, **variables)
        assert status == 1
        ((part, sentence),) = faults.items()
        return part, sentence


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> AsyncIterator[str]:
    async with harness.scripted(SCRIPT) as scripted:
        yield scripted.base_url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedDatabase]:
    async with guarded_database(tmp_path_factory.mktemp("guarded")) as database:
        yield database


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mongo_uri: str, model: str) -> Doctor:
    return Doctor(monkeypatch, capsys, mongo_uri, model)


async def test_all_is_in_order(doctor: Doctor, mongo_uri: str) -> None:
    name = f"turnkeeper_test_{secrets.token_hex(6)}"
    assert await doctor(TURNKEEPER_DATABASE=name) == (0, {})
    assert doctor.unchecked == []
    async with AsyncMongoClient[dict[str, Any]](mongo_uri) as client:
        assert await client[name].list_collection_names() == [], "it has written"


async def test_a_setting(doctor: Doctor) -> None:
    assert await doctor.only_fault("--lease", "soon") == (
        "settings",
        "--lease is 'soon'; it must be a duration such as 250ms, 30s, 10m, 1h or 7d",
    )


async def test_the_agents_file(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "agents.toml"
    file.write_text('[[agent]]\nname = "shop"\ntools = ["send_mesage"]\n')
    part, sentence = await doctor.only_fault("--agents", str(file))
    assert part == "agents"
    assert sentence.startswith(f"{file}:3: agent 1 (shop): tools names 'send_mesage'")
    assert doctor.unchecked == ["tools", "model"]


async def test_a_file_of_tools(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "desk.py"
    file.write_text("def broken(:\n")
    part, sentence = await doctor.only_fault("--tools", str(file))
    assert part == "agents"
    assert f"{file}:1" in sentence


async def test_the_tool_servers_of_a_catalogue(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "catalogue.toml"
    command = f'"{Path(sys.executable).with_name("mcp-server-time")}", "--local-timezone", "UTC"'
    table = '[[server]]\nname = "{name}"\nmcp = "stdio"\ncommand = [{command}]\n'
    file.write_text(table.format(name="time", command=command))
    assert await doctor("--catalogue", str(file)) == (0, {})
    file.write_text(table.format(name="time", command=command) + table.format(name="lost", command='"false"'))
    part, sentence = await doctor.only_fault("--catalogue", str(file))
    assert part == "tools"
    assert sentence.startswith("the server lost does not answer: ")
    file.write_text('[[tool]]\ntool = "add"\nclas = "forbidden"\n')
    part, sentence = await doctor.only_fault("--catalogue", str(file))
    assert (part, doctor.unchecked) == ("agents", ["tools", "model"])
    assert sentence == f"{file}:3: tool.0.clas: there is no such key; did you mean class?"


async def test_a_port(doctor: Doctor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        expected = "cannot be listened on: another program has it. Stop that one, or choose another --port."
        assert await doctor.only_fault("--port", port) == ("ports", f"127.0.0.1:{port} {expected}")
        _, sentence = await doctor.only_fault("--health-port", port)
        assert sentence.endswith("choose another --health-port.")


async def test_an_ended_certificate(doctor: Doctor, tmp_path: Path) -> None:
    dev_credentials.write(tmp_path, {"ada": ["caller"]}, hosts=["localhost"], lifetime=timedelta(seconds=-1))
    part, sentence = await doctor.only_fault(
        "--tls-certificate", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server-key.pem")
    )
    assert part == "callers"
    assert f"{tmp_path / 'server.pem'} ended at " in sentence


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("unauthorized", "it refuses the key: check OPENAI_API_KEY"),
        ("not_found", "it has no such model or address: check the model's name"),
    ],
)
async def test_what_a_models_server_refuses(doctor: Doctor, fails: str, words: str) -> None:
    async with harness.scripted(f'[[reply]]\nfail = "{fails}"') as scripted:
        part, sentence = await doctor.only_fault("--model", "large", OPENAI_BASE_URL=scripted.base_url)
        host = scripted.base_url.partition("://")[2].partition("/")[0]
    assert part == "model"
    assert sentence.startswith(f"the model large of the agent assistant, at {host}: {words}")


async def test_a_model_that_does_not_answer(doctor: Doctor) -> None:
    part, sentence = await doctor.only_fault(OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert part == "model"
    assert "nothing answers there: start the model's server, or check OPENAI_BASE_URL" in sentence


async def test_no_model(doctor: Doctor) -> None:
    part, sentence = await doctor.only_fault(OPENAI_BASE_URL="", OPENAI_API_KEY="")
    assert part == "agents"
    assert sentence.startswith("no model is set: set OPENAI_API_KEY or OPENAI_BASE_URL, pass --local-model")


async def test_no_database_answers(doctor: Doctor) -> None:
    assert await doctor.only_fault(MONGODB_URI="mongodb://127.0.0.1:1/?replicaSet=orders") == (
        "database",
        "no database answers at 127.0.0.1:1: the connection is refused. Check MONGODB_URI, and that it runs",
    )


async def test_a_password(doctor: Doctor, guarded: GuardedDatabase) -> None:
    part, sentence = await doctor.only_fault(MONGODB_URI=guarded.uri("ada:a-password"))
    assert part == "database"
    assert sentence.startswith(f"{guarded.at} refuses the user or the password of MONGODB_URI: check both")
    assert "a-password" not in sentence


async def test_a_missing_right(doctor: Doctor, guarded: GuardedDatabase) -> None:
    part, sentence = await doctor.only_fault(MONGODB_URI=guarded.uri("bob:bob"))
    assert part == "database"
    assert sentence.startswith("the user of MONGODB_URI lacks rights on the database doctor: ")
    assert sentence.endswith("; grant them, or the role readWrite there")


async def test_no_primary(doctor: Doctor, guarded: GuardedDatabase) -> None:
    async with AsyncMongoClient[dict[str, Any]](guarded.uri(ADMIN), directConnection=True) as client:
        await client.admin.command({"replSetStepDown": 60, "force": True})
        try:
            part, sentence = await doctor.only_fault(MONGODB_URI=guarded.uri(ADMIN))
        finally:
            await client.admin.command({"replSetFreeze": 0})
    assert part == "database"
    assert sentence.startswith("the replica set orders has no primary: a majority of its members must be up")


async def test_no_majority(doctor: Doctor, mongo_uri: str) -> None:
    """The primary answers, and a read that a majority must confirm does not return."""
    held: dict[str, Any] = {"blockConnection": True, "blockTimeMS": 1_500, "namespace": "doctor.heads"}
    async with Client(mongo_uri) as client, fail_point(client, "find", **held):
        part, sentence = await doctor.only_fault("--operation-time", "1s")
    assert part == "database"
    assert sentence.startswith("the database answers, but a write was not acknowledged by a majority of its members")


@pytest.mark.parametrize(("apart", "words"), [(60, "60 s behind"), (-60, "60 s ahead of")])
async def test_clocks_that_are_apart(mongo_uri: str, apart: int, words: str) -> None:
    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=apart)

    database = await examine(mongo_uri, database="doctor", operation=timedelta(seconds=5), clock=clock)
    with pytest.raises(FaultFound) as raised:
        check_clock(database)
    assert str(raised.value).startswith(f"the clock of the database is {words} this machine's: let both follow a time")


async def test_the_disk_of_a_database_is_nearly_full(doctor: Doctor, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=400) as disk:
        async with guarded_database(disk) as database:
            part, sentence = await doctor.only_fault(MONGODB_URI=database.uri(ADMIN))
            assert part == "database"
            assert re.fullmatch(
                r"the disk of the database's primary has \d+ MB left, less than 500: "
                r"enlarge it: MongoDB ends once it is full",
                sentence,
            )
            assert await doctor(MONGODB_URI=database.uri(SERVICE)) == (0, {}), "the least rights do not show the disk"


async def test_a_disk_of_the_servers_own_is_nearly_full(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", mebibytes=64) as disk:
        part, sentence = await doctor.only_fault("--embedded", "--data-dir", str(disk / "new" / "data"), MONGODB_URI="")
        assert part == "disks"
        assert re.match(rf"the disk of --data-dir {disk}/new/data has 6\d MB left, less than 500: ", sentence)
        assert sentence.endswith("free some space, or choose a folder on another disk")
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        part, sentence = await doctor.only_fault("--local-model")
        assert part == "disks"
        assert sentence.startswith(f"the disk of temporary files in {disk} has 6")
        assert sentence.endswith("free some space, or set TMPDIR to a folder on another disk")


async def test_a_server_of_ours_may_have_the_port(doctor: Doctor, mongo_uri: str, model: str) -> None:
    name = f"turnkeeper_test_{secrets.token_hex(6)}"
    async with harness.serving(mongo_uri, name, model) as server:
        assert await doctor("--port", str(server.port)) == (0, {})


async def test_a_person_reads_a_line_a_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(os.environ):
        if name.startswith(("TURNKEEPER_", "OPENAI_", "MONGODB_")):
            monkeypatch.delenv(name)
    status = await asyncio.to_thread(main, ["doctor", "--port", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 1
    assert [line.split()[:2] for line in lines] == [
        [mark, part] for mark, part in zip(("ok", "ok", "FAULT", "-", "-", "ok", "FAULT"), PARTS, strict=True)
    ]
    assert "no database is set: pass --embedded for a private one, or set MONGODB_URI" in lines[-1]
