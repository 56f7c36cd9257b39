"""The scene for tenants: the clients and the checker of `make chaos` on one server, without faults."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests import harness
from tests.chaos import load, tenants, tools
from tests.chaos.checker import judge
from tests.chaos.points.stage import Stage
from tests.chaos.prompts import PROMPTS
from tests.chaos.proxy import Wire
from tests.chaos.reading import read
from tests.chaos.services.running import serving
from turnkeeper.model.script_file import load_script
from turnkeeper.model.scripted import ScriptedModel

SECONDS: Final = 8.0
GRACE: Final = 8.0
SETTLE: Final = 5.0
SESSIONS: Final = 8
_HERE: Final = Path(load.__file__).parent


async def beside_each_other(stage: Stage) -> Sequence[str]:
    """Lets two tenants use the same ids on one server, and ask for each other's. Returns what the checker finds."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-mutant-tenants-") as name:
        folder = Path(name)
        tenants.write(folder)
        flags = ("--agents", str(_HERE / "agents.toml"), "--lease", "30s", "--log-level", "ERROR")
        async with contextlib.AsyncExitStack() as stack:
            services = await stack.enter_async_context(serving(folder, stack.enter_context(Wire())))
            script = ScriptedModel(load_script(_HERE / "model.toml"), record=folder / PROMPTS)
            server = await stack.enter_async_context(
                harness.server_process(
                    stage.mongo_uri,
                    stage.database,
                    await stack.enter_async_context(script),
                    flags=(*flags, *tenants.flags(folder), *services.flags),
                    variables=tools.variables(folder),
                    program=stage.program,
                )
            )
            await load.run(
                addresses=[server.address],
                identity=folder,
                seed=1,
                seconds=SECONDS,
                out=folder,
                sessions=SESSIONS,
                grace=GRACE,
            )
        findings = judge(await read(stage.mongo_uri, stage.database, folder, faults=None, settle=SETTLE))
    names = sorted(findings, key=lambda name: name != "I13")
    return [f"{name}: {line}" for name in names for line in findings[name].violations]
