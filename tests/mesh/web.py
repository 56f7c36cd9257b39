"""One page's calls over gRPC-Web, by Node: they need the headers that the proxy exposes."""

import asyncio
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.chaos import tenants
from tests.chaos.programs import REPOSITORY
from tests.mesh.stage import ORIGIN, Stage

SKIPPED: Final = "gRPC-Web was not tried: there is no Node.js with npm on this machine."
EXPOSED: Final = frozenset({"grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"})
"""Headers without which a page cannot tell an error, its details, and the call that had it."""
_PROGRAM: Final = Path(__file__).parent / "page"
_INSTALLED: Final = REPOSITORY / "build" / "mesh-web"
_PROTOS: Final = REPOSITORY / "protos" / "released.binpb"
_TIME: Final = 120.0


@dataclass(frozen=True, slots=True)
class Web:
    """What came of the calls. `skipped`: why there were none, or empty; `broken`: what was not as promised."""

    skipped: str
    broken: list[str]


async def call(stage: Stage) -> Web:
    """Installs the pinned packages, and makes the calls."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return Web(SKIPPED, [])
    _INSTALLED.mkdir(parents=True, exist_ok=True)
    for file in _PROGRAM.iterdir():
        shutil.copy(file, _INSTALLED)
    status, output = await _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    if status != 0:
        return Web("", [f"npm cannot install the pinned packages: {output[-500:]}"])
    settings = {
        "address": stage.envoy.address,
        "origin": ORIGIN,
        "token": stage.caller(tenants.TENANTS[0]).token,
        "protos": str(_PROTOS),
    }
    status, output = await _run("node", "call.mjs", json.dumps(settings), NODE_EXTRA_CA_CERTS=str(stage.ca))
    if status != 0:
        return Web("", [f"the calls over gRPC-Web failed: {output[-500:]}"])
    return Web("", judge(json.loads(output.splitlines()[-1])))


def judge(page: dict[str, Any]) -> list[str]:
    """Returns a line for each thing that the page did not find as promised."""
    expected = {"error": "NotFound", "details": 1, "events": 1, "requestId": "from-a-page"}
    broken = [
        f"{name} is {page.get(name)!r}, not {value!r}" for name, value in expected.items() if page.get(name) != value
    ]
    missing = sorted(EXPOSED - set(page.get("exposed", ())))
    return [f"gRPC-Web: {line}" for line in [*broken, *(f"the header {name} is not exposed" for name in missing)]]


async def _run(*words: str, **variables: str) -> tuple[int, str]:
    """Runs a program in the folder of the packages. Returns its status and its output."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=_INSTALLED,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_TIME):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace")
