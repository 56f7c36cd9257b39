"""Records the terminal that README.md shows: `turnkeeper dev`, a message, and its approval. Writes docs/terminal.svg.

make recording
"""

import asyncio
import itertools
import os
import re
import sys
import tempfile
from io import StringIO
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

from tests.pseudo_terminal import CTRL_C, PseudoTerminal, terminal
from turnkeeper_client import Client

ADDRESS: Final = "127.0.0.1:50051"
"""The usual one, so that the commands on the screen are short. It must be free."""
FILE: Final = Path(__file__).parents[2] / "docs/terminal.svg"
BIN: Final = Path(sys.executable).parent
COLUMNS, ROWS = 80, 24
_COLOURS: Final = {"brown": "yellow", "default": None}
"""Names of colours that pyte has and rich does not."""
_FONT: Final = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)


async def record() -> str:
    """Returns the screen as an SVG. Everything on it is printed by the real programs."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": folder}
        async with terminal(
            [str(BIN / "turnkeeper"), "dev"], env=env, cwd=Path(folder), columns=COLUMNS, rows=ROWS
        ) as dev:
            await dev.until("turnkeeper sessions")
            async with Client(ADDRESS) as client:
                session = await client.sessions.create("clerk")
                turn = await session.send("Tell Ada that lunch is at noon.")
                approval = turn.pending[0].approval_id
                await dev.until(f"turnkeeper approve {approval[-6:]}")
                async with terminal(
                    [str(BIN / "turnkeeper"), "approve", approval[-6:]], env=env, cwd=Path(folder)
                ) as question:
                    await question.until("y")
                    question.type("y\r")
                    await question.ended()
                await session.turn(turn.turn_id, wait=20)
            await dev.until("clerk  answered in")
            picture = svg(dev)
            dev.type(CTRL_C)
            await dev.ended()
    return picture


def svg(screen: PseudoTerminal) -> str:
    """Returns the visible lines with their colours, without a font from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, highlight=False)
    last = max(number for number, line in enumerate(screen.lines) if line)
    for number in range(last + 1):
        line = Text()
        for (colour, bold), run in itertools.groupby(screen.row(number), lambda sign: (sign.fg, sign.bold)):
            style = Style(color=_COLOURS.get(colour, colour), bold=bold)
            line.append("".join(character.data for character in run), style)
        line.rstrip()
        console.print(line, soft_wrap=True)
    picture = console.export_svg(title="turnkeeper dev", code_format=_FONT.sub("", CONSOLE_SVG_FORMAT), unique_id="dev")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


if __name__ == "__main__":
    FILE.write_text(asyncio.run(record()), encoding="utf-8")
    print(f"written: {FILE.relative_to(Path.cwd())}")
