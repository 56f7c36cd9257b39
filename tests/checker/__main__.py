"""`python -m tests.checker URI DATABASE`: what does not fit, a line each. Exit status 1 when there is any."""

import asyncio
import sys

from tests.checker.compare import differences

found = asyncio.run(differences(*sys.argv[1:3]))
print("\n".join(found) or "all documents equal the fold of their logs")
sys.exit(bool(found))
