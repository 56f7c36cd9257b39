"""The page of the guide about authentication can be pasted: its commands and programs do what it promises."""

import shlex
from pathlib import Path

from tests import harness
from tests.e2e.test_documents import ADDRESS, run
from tests.unit.docs.pages import DOCS, ROOT, blocks, table
from turnkeeper.identity.credential import Refusal

PAGE = (DOCS / "guide/authentication.md").read_text(encoding="utf-8")
SCRIPT = '[[reply]]\ntext = "Yes."'
EMBEDDED = "--embedded --local-model"


async def test_the_commands_and_the_programs_work(mongo_uri: str, database_name: str, tmp_path: Path) -> None:
    """The database and the model are the test's; everything else stands as it is on the page."""
    first, listing, second = (block.replace("credentials/", f"{tmp_path}/credentials/") for block in blocks(PAGE, "sh"))
    programs = blocks(PAGE, "python")
    make, _, serve_tokens = first.partition("\n")
    status, printed = await run(*command(make), folder=tmp_path)
    assert status == 0, printed
    for serve, program, owner in ((serve_tokens, programs[0], "ada"), (second, programs[1], "bob")):
        words = shlex.split(serve.replace("\\\n", " "))
        assert " ".join(words[1:4]) == f"serve {EMBEDDED}"
        async with (
            harness.scripted(SCRIPT) as model,
            harness.server_process(mongo_uri, database_name, model, flags=tuple(words[4:])) as server,
        ):
            code = program.replace(ADDRESS, server.address)
            status, printed = await run("python", "-", stdin=code, folder=tmp_path)
            assert (status, printed) == (0, f"{owner}\n")
            if owner == "ada":
                status, printed = await run("bash", "-euc", listing.replace(ADDRESS, server.address))
                assert status == 0, printed
                assert '"owner": "ada"' in printed


def command(line: str) -> list[str]:
    """Returns the words of a command that names its program from the repository."""
    program, *words = shlex.split(line)
    return [str(ROOT / program), *words]


def test_every_reason_is_on_the_page() -> None:
    rows = table(PAGE, "reason", "the credential")
    assert {reason for row in rows for reason in row[0].split(", ")} == {refusal.value for refusal in Refusal}
