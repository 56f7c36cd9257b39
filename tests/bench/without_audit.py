"""`python -m tests.bench.without_audit serve …` runs `turnkeeper serve …` without an audit trail, for the bench alone.

Nothing is recorded with a decision, and nothing is sealed.
"""

from dataclasses import replace
from typing import Any

from turnkeeper import __main__ as program
from turnkeeper.engine.replica.sealer import Sealer
from turnkeeper.store.changeset import Changeset, CommitResult
from turnkeeper.store.mongo.changesets import Changesets

_commit = Changesets.commit


async def _commit_without_records(changesets: Any, changeset: Changeset) -> CommitResult:
    return await _commit(changesets, replace(changeset, audit=()) if changeset.audit else changeset)


async def _seal_nothing(_: Any) -> None:
    """Stands for a sealer without work."""


if __name__ == "__main__":
    Changesets.commit = _commit_without_records  # type: ignore[assignment]
    Sealer.seal = _seal_nothing  # type: ignore[assignment]
    raise SystemExit(program.main())
