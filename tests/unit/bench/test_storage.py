"""What a turn costs the database: differences of its counters."""

from tests.bench.measures import storage
from tests.bench.measures.storage import Counted


def _counted(**sent: int) -> Counted:
    commands = dict.fromkeys((*storage.COMMANDS, "getMore"), 7) | sent
    return Counted(commands, documents=10, data={"events": 1024}, stored=4096, indexes=4096, oplog=2048)


def test_a_turn_s_share_is_what_was_added_since() -> None:
    commands = {**_counted().commands, "insert": 27, "commitTransaction": 11, "getMore": 9}
    after = Counted(commands, documents=30, data={"events": 3072, "turns": 2048}, stored=8192, indexes=8192, oplog=6144)
    costs = after.per_turn(_counted(), 2)
    assert costs == {
        "commands": 12,
        "transactions": 2,
        "news": 1,
        "documents": 10,
        "data": 2,
        "stored": 2,
        "indexes": 2,
        "oplog": 2,
    }


def test_bytes_are_shown_for_many_turns_alone() -> None:
    costs = dict.fromkeys(storage.ABOUT, 1.5)
    few = [row.name for row in storage.rows_of("storage.new.1.64", costs, alone=True)]
    many = {row.name: row.unit for row in storage.rows_of("storage.new.64.64", costs, alone=False)}
    assert few == [f"storage.new.1.64.{key}" for key in ("commands", "transactions", "news", "documents")]
    assert list(many) == [f"storage.new.64.64.{key}" for key in storage.ABOUT]
    assert many["storage.new.64.64.data"] == "KiB"
