"""The clients and the checker of `make chaos` on one server without faults, with tool servers."""

import contextlib
from pathlib import Path

from tests import harness
from tests.chaos import load, tenants, tools
from tests.chaos.checker import judge
from tests.chaos.proxy import Wire
from tests.chaos.reading import read
from tests.chaos.services.running import serving
from tests.chaos.summary import summary
from turnkeeper.model.script_file import load_script
from turnkeeper.model.scripted import ScriptedModel

CHAOS = Path(load.__file__).parent
SECONDS = 3.0


async def test_without_faults_nothing_is_broken(mongo_uri: str, database_name: str, tmp_path: Path) -> None:
    script = load_script(CHAOS / "model.toml")
    tenants.write(tmp_path / "identity")
    async with contextlib.AsyncExitStack() as stack:
        services = await stack.enter_async_context(serving(tmp_path, stack.enter_context(Wire())))
        model = await stack.enter_async_context(ScriptedModel(script, record=tmp_path / "model.jsonl"))
        flags = ("--agents", str(CHAOS / "agents.toml"), *tenants.flags(tmp_path / "identity"), *services.flags)
        server = await stack.enter_async_context(
            harness.server_process(mongo_uri, database_name, model, flags=flags, variables=tools.variables(tmp_path))
        )
        await load.run(
            addresses=[server.address],
            identity=tmp_path / "identity",
            seed=2,
            seconds=SECONDS,
            out=tmp_path,
            sessions=6,
        )
    history = await read(mongo_uri, database_name, tmp_path, faults=None, settle=10)
    findings = judge(history)
    assert {name: finding.violations for name, finding in findings.items() if finding.violations} == {}
    report = summary(history, findings)
    assert report["acknowledged_turns"] > 5
    assert report["waiting"] == 0
    assert report["ids_of_two_sessions"] > 0
    assert report["foreign_reads"] > 0
    assert report["foreign_reads_leaked"] == 0
    assert report["effects_of_tool_servers"] > 0
    assert report["next_messages"] > 0
