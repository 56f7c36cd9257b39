"""The catalogue of a run: its tool servers, and what their tools may do."""

import json
import sys
from pathlib import Path
from typing import Final

from tests.chaos.programs import REPOSITORY
from tests.chaos.services.offered import BANK, DESK, SHED
from tests.tool_servers.served import a_key_file

OVER_STDIO: Final = "tests.chaos.services.over_stdio"
_SERVERS: Final = f"""
[[server]]
name = "{BANK}"
grpc = "{{bank}}"
plaintext = true
keys = ["{{key}}"]

[[server]]
name = "{DESK}"
mcp = "http"
url = "http://{{desk}}/mcp"
revision = "2025-11-25"
allow_private = true
allow_http = true

"""
_TOOLS: Final = """
[[tool]]
tool = "bank__quote"
class = "read_only"
timeout = "4s"
attempts = 3
trusted_output = true

[[tool]]
tool = "bank__*"
class = "irreversible"
timeout = "4s"
trusted_output = true

[[tool]]
tool = "desk__file"
class = "idempotent"
timeout = "4s"
attempts = 3
trusted_output = true

# Without a class: the server's own words that its tool reads only count for nothing.
[[tool]]
tool = "desk__*"
timeout = "4s"
trusted_output = true

[[tool]]
tool = "shed__fetch"
class = "read_only"
timeout = "4s"
attempts = 3
trusted_output = true

[[tool]]
tool = "shed__*"
class = "irreversible"
timeout = "4s"
trusted_output = true
"""


def stdio_table(name: str, folder: Path) -> str:
    """Returns the table of a server of MCP over stdio, which writes its effects into the folder."""
    command = [sys.executable, "-m", OVER_STDIO, name, str(folder)]
    return f'[[server]]\nname = "{name}"\nmcp = "stdio"\ncommand = {json.dumps(command)}\ncwd = "{REPOSITORY}"\n'


def write(folder: Path, *, bank: str, desk: str) -> Path:
    """Writes the catalogue, with the addresses of the servers that have one, and returns its file."""
    key = a_key_file(folder)
    file = folder / "catalogue.toml"
    content = _SERVERS.format(bank=bank, desk=desk, key=key) + stdio_table(SHED, folder) + _TOOLS
    file.write_text(content, encoding="utf-8")
    return file
