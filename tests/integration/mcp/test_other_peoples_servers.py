"""MCP servers that others wrote and published, over stdio, with each revision."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.mcp_servers.sources import a_context, program, running
from turnkeeper.domain.tool import ToolClass
from turnkeeper.tools.contract import ToolError
from turnkeeper.tools.mcp.tables import Revision


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_mcp_server_time(revision: Revision) -> None:
    table = program("time", "mcp-server-time", "--local-timezone", "UTC", revision=revision)
    async with running(table) as source:
        await source.refresh()
        assert source.revision == revision
        assert [spec.name for spec in source.specs()] == ["time__convert_time", "time__get_current_time"]
        assert {spec.tool_class for spec in source.specs()} == {ToolClass.READ_ONLY}
        now = json.loads(await source.call("time__get_current_time", {"timezone": "Asia/Tokyo"}, a_context()))
        assert now["timezone"] == "Asia/Tokyo"
        with pytest.raises(ToolError, match="Invalid timezone"):
            await source.call("time__get_current_time", {"timezone": "Mars/Base"}, a_context())


async def test_mcp_server_git(tmp_path: Path) -> None:
    for command in (["init", "-q"], ["config", "user.name", "Ann"], ["config", "user.email", "ann@example.com"]):
        await (await asyncio.create_subprocess_exec("git", "-C", str(tmp_path), *command)).wait()
    (tmp_path / "note.txt").write_text("first\n")
    async with running(program("git", "mcp-server-git", "--repository", str(tmp_path))) as source:
        await source.refresh()
        assert source.revision == "2026-07-28"
        classes = {spec.name: spec.tool_class for spec in source.specs()}
        assert classes["git__git_log"] is ToolClass.READ_ONLY
        assert classes["git__git_commit"] is ToolClass.IRREVERSIBLE
        repository: dict[str, object] = {"repo_path": str(tmp_path)}
        await source.call("git__git_add", {**repository, "files": ["note.txt"]}, a_context())
        await source.call("git__git_commit", {**repository, "message": "First words"}, a_context())
        assert "First words" in await source.call("git__git_log", repository, a_context())
        with pytest.raises(ToolError):
            await source.call("git__git_log", {"repo_path": "/"}, a_context())
