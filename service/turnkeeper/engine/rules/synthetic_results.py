"""Results that stand in for a tool's own: what the model reads of a call that will get no other result (I16)."""

import json

from turnkeeper.domain.tool import Call, ToolOutcome, ToolResult

_TEXTS = {
    ToolOutcome.CANCELLED: "The call was cancelled before its result was known.",
    ToolOutcome.REJECTED: "A person rejected this call.",
    ToolOutcome.EXPIRED: "This call was not approved in time.",
    ToolOutcome.UNKNOWN: "It is not known how the tool ended; it may or may not have taken effect.",
}
_NEVER_RAN = "The call was cancelled; it did not run."
_SUPERSEDED = "The user sent another message before this call was approved; it did not run."


def synthetic_result(call: Call, outcome: ToolOutcome, *, reason: str = "") -> ToolResult:
    """Returns the result that closes `call` as CANCELLED, REJECTED, EXPIRED or UNKNOWN.

    `reason` is a person's, and is shown to the model beside the text. A call that was cancelled before its start gets
    another text than one that may have taken effect.
    """
    never_ran = outcome is ToolOutcome.CANCELLED and not call.started
    text = _NEVER_RAN if never_ran else _TEXTS[outcome]
    result = {"error": text, "reason": reason} if reason else text
    return ToolResult(outcome=outcome, result_json=json.dumps(result, ensure_ascii=False))


def superseded_result() -> ToolResult:
    """Returns the result of a call whose approval a later message withdrew: CANCELLED, and it did not run."""
    return ToolResult(outcome=ToolOutcome.CANCELLED, result_json=json.dumps(_SUPERSEDED))
