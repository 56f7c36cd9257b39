"""Votes and lent authority on the command line: what is printed, and what is still needed."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.support.voters import Served, serving_voters
from tests.identities import token_of
from tests.test_tools import ToolControl

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Served]:
    async with serving_voters(mongo_uri, module_database, tmp_path_factory.mktemp("votes"), replicas=1) as served:
        yield served


async def command(served: Served, folder: Path, name: str, *arguments: str, status: int = 0) -> str:
    """Runs a command as this principal, with its exit status checked. Returns what it printed."""
    (folder / name).write_text(token_of(f"acme/{name}"))
    program = (sys.executable, "-m", "turnkeeper", *arguments)
    service = ("--address", served.addresses[0], "--token-file", str(folder / name))
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ} | {"COLUMNS": "400"}
    process = await asyncio.create_subprocess_exec(*program, *service, stdout=PIPE, stderr=PIPE, env=kept)
    output, errors = await process.communicate()
    text = output.decode() + errors.decode()
    assert process.returncode == status, text
    return text


async def test_what_is_printed_says_how_many_votes_there_are_and_who_is_needed(served: Served, tmp_path: Path) -> None:
    approval = await served.pending("printed")
    approve = ("approve", approval.approval_id, "--yes")
    needed = "needs 1 more of members of finance, not who caused the call"
    first = await command(served, tmp_path, "bob", *approve)
    assert "0 of 2 votes; needs 2 more of members of finance, not who caused the call" in first
    assert f"act waits: 1 of 2 votes: bob approve; {needed}" in first
    refused = await command(served, tmp_path, "vic", *approve, status=5)
    assert "PERMISSION_DENIED" in refused
    assert "Needed: 2 of members of finance, not who caused the call." in refused
    second = await command(served, tmp_path, "eve", *approve)
    assert f"1 of 2 votes: bob approve; {needed}" in second
    assert "act: approved" in second


async def test_authority_is_lent_listed_used_and_taken_back(served: Served, tmp_path: Path) -> None:
    assert "No authority is lent." in await command(served, tmp_path, "eve", "approvals", "delegations")
    lent = await command(served, tmp_path, "eve", "approvals", "delegate", "sue", "--for", "8h")
    assert lent.startswith("sue may decide in your place until ")
    too_long = await command(served, tmp_path, "eve", "approvals", "delegate", "sue", "--for", "31d", status=5)
    assert "at most 30 days from now" in too_long
    listed = await command(served, tmp_path, "sue", "approvals", "delegations")
    assert listed.splitlines()[1].split()[:2] == ["sue", "eve"]
    approval = await served.pending("lent")
    voted = await command(served, tmp_path, "sue", "approve", approval.approval_id, "--yes")
    assert "1 of 2 votes: sue for eve approve" in voted
    assert "no longer decides" in await command(served, tmp_path, "eve", "approvals", "revoke", "sue")
    assert "did not decide" in await command(served, tmp_path, "eve", "approvals", "revoke", "sue", status=1)
    story = await command(served, tmp_path, "sue", "show", "lent")
    assert "sue in the place of eve voted to approve" in story
