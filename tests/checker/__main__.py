"""`python -m tests.checker URI DATABASE` prints each document that differs from its log. Exit status 1 if any does."""

import asyncio
import sys

from tests.checker.compare import differences

lines = asyncio.run(differences(*sys.argv[1:3]))
print("\n".join(lines) or "all documents equal the fold of their logs")
sys.exit(bool(lines))
