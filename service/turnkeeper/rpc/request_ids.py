"""The id that a caller or a proxy gave a call, for the audit trail and the log."""

import re
from typing import Final

from turnkeeper.rpc.context import Context

REQUEST_ID: Final = "x-request-id"
"""The metadata by which callers and proxies name a call."""
_FIT: Final = re.compile(r"[!-~]{1,128}")


def request_id_of(context: Context) -> str:
    """Returns the first id that the metadata has; empty if that is longer than 128 characters, or not visible ASCII."""
    given = next((value for key, value in context.invocation_metadata() or () if key == REQUEST_ID), "")
    return given if isinstance(given, str) and _FIT.fullmatch(given) else ""
