"""Which calls are refused because of who made them: the audit trail has samples of these."""

from typing import Final

from turnkeeper.audit.refusals import RefusalSamples, RefusedCall
from turnkeeper.codes import Code
from turnkeeper.errors import SessionError
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import known_caller
from turnkeeper.rpc.origins import origin

CODES: Final = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.PRINCIPAL_UNKNOWN})
"""The errors of such calls."""


class RefusedCalls:
    """Takes samples of them."""

    def __init__(self, samples: RefusalSamples) -> None:
        self._samples = samples

    def note(self, error: SessionError, context: Context, method: str) -> None:
        """Takes a sample if the call of the current task ended with one of CODES. Waits for nothing."""
        if error.code not in CODES:
            return
        known = known_caller()
        self._samples.note(
            RefusedCall(
                tenant=known.caller.tenant if known.caller else "",
                reason="/".join(filter(None, (error.code.name, error.metadata.get("reason", "")))),
                method=method,
                origin=origin(known.caller, context, credential_id=known.credential_id),
            )
        )
