"""Stores late results: what a tool returned to an owner that had lost its lease. Never part of the log."""

from typing import Final

from turnkeeper.domain.approval import HASH_DIGITS, ApprovalKind, ApprovalState, late_part
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState, ToolOutcome, ToolResult
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

_WITHOUT_RESULT: Final = [
    {"state": {"$in": [CallState.STARTED.value, CallState.UNKNOWN.value]}},
    {"state": CallState.RETURNED.value, "outcome": {"$in": [ToolOutcome.UNKNOWN.value, ToolOutcome.CANCELLED.value]}},
]
"""Alternatives: the call has no result from its tool."""


class LateResultWrites:
    """Implements `SessionStore.keep_late_result`."""

    _connection: Connection
    _transactions: Transactions

    async def keep_late_result(
        self,
        key: SessionKey,
        tool_call_id: str,
        *,
        attempt: int,
        fence: int,
        result: ToolResult,
    ) -> bool:
        call = keys.where(keys.of_member(key, tool_call_id))
        start: Document = {"attempt": attempt, "fence": fence}
        late: Document = {
            "late_attempt": attempt,
            "late_outcome": result.outcome.value,
            "late_result_json": result.result_json,
        }
        approval: Document = {
            "tenant": key.tenant,
            "session_id": key.session_id,
            "tool_call_id": tool_call_id,
            "kind": ApprovalKind.OUTCOME.value,
            "state": ApprovalState.PENDING.value,
        }

        before = {"$substrCP": ["$arguments_hash", 0, HASH_DIGITS]}
        shown: Document = {
            "late_result_json": {"$literal": result.result_json},
            "arguments_hash": {"$concat": [before, late_part(result.result_json)]},
        }

        def write(writes: Writes) -> None:
            once: Document = {**call, **start, "late_attempt": {"$ne": attempt}, "$or": _WITHOUT_RESULT}
            writes.update("tool_calls", once, late)
            writes.compute_where("approvals", approval, shown)

        async def look(session: ClientSession, obstacle: Obstacle) -> bool | None:
            if await self._connection.calls.find_one({**call, **start, **late}, {"_id": 1}, session=session):
                return True
            return False if obstacle is Obstacle.MISS else None

        with self._connection.transaction_call("keep_late_result"):
            return await self._transactions.run(Transaction(write, result=True, look=look))
