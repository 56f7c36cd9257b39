"""Generate the client without asyncio, `turnkeeper_client/sync`, from the modules of the asynchronous one.

    python clients/python/generate_sync.py            write it
    python clients/python/generate_sync.py --check    write nothing; exit 1 when what stands there is not current

It works on the tokens of each module: `async` and `await` go, and the names of NAMES become those beside them. What
cannot be generated is in `wire.py` and `sync/wire.py`, which are written by hand and have the same names.
"""

import argparse
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent / "turnkeeper_client"
SYNC = PACKAGE / "sync"
HEADER = "# Generated from ../{name} by `make sync-client`. Do not edit.\n"
MODULES = (
    "agents.py",
    "approvals.py",
    "calls.py",
    "client.py",
    "inbox.py",
    "session.py",
    "sessions.py",
    "streams.py",
    "stubs.py",
    "tokens.py",
)
# The modules that the generated ones import from `sync` instead of from the package itself.
IN_SYNC = (*(name.removesuffix(".py") for name in MODULES), "wire")
NAMES = {
    "AsyncGenerator": "Generator",
    "AsyncIterator": "Iterator",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "aclosing": "closing",
    "aiter": "iter",
    "anext": "next",
}
GONE = ("async", "await")
# In docstrings.
WORDS = (
    (r"Make it inside a running event loop, and close it\.", "Close it after use."),
    (r"\b(async|await) ", ""),
    (r"\basynchronous iterator", "iterator"),
)


def synchronous(source: str) -> str:
    """Returns a module's text without asyncio."""
    lines = source.splitlines(keepends=True)
    cuts: list[tuple[int, int, int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, start = token.start
        if token.type == tokenize.NAME and token.string in GONE:
            cuts.append((row, start, token.end[1] + 1, ""))  # with the space behind it
        elif token.type == tokenize.NAME and token.string in NAMES:
            cuts.append((row, start, token.end[1], NAMES[token.string]))
    for row, start, end, text in reversed(cuts):
        line = lines[row - 1]
        lines[row - 1] = line[:start] + text + line[end:]
    text = "".join(lines)
    text = re.sub(r"\bGenerator\[(\w+), None\]", r"Generator[\1, None, None]", text)
    text = re.sub(
        rf"^from turnkeeper_client\.({'|'.join(IN_SYNC)}) import",
        r"from turnkeeper_client.sync.\1 import",
        text,
        flags=re.M,
    )
    text = re.sub(
        rf"^(    from) turnkeeper_client\.({'|'.join(IN_SYNC)}) import",
        r"\1 turnkeeper_client.sync.\2 import",
        text,
        flags=re.M,
    )
    return re.sub(r'""".*?"""', lambda docstring: in_words(docstring[0]), text, flags=re.DOTALL)


def in_words(docstring: str) -> str:
    """Returns a docstring that speaks of no coroutines."""
    for pattern, replacement in WORDS:
        docstring = re.sub(pattern, replacement, docstring)
    return docstring


def tidy(text: str, path: Path) -> str:
    """Returns the text as ruff sorts and formats it: replaced names change the order of imports, and lengths."""
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--fix-only", "--select=I", "-q"], ["format", "-q"]):
        done = subprocess.run(
            [*ruff, *command, f"--stdin-filename={path}", "-"], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr)
        text = done.stdout
    return text


def main() -> int:
    """Write or compare every module. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = []
    for name in MODULES:
        path = SYNC / name
        text = tidy(HEADER.format(name=name) + synchronous((PACKAGE / name).read_text()), path)
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"turnkeeper_client/sync is not current ({', '.join(stale)}): run `make sync-client` and commit it")
        return 1
    print(f"client without asyncio: {'current' if not stale else f'{len(stale)} modules written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
