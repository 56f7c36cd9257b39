"""What a janitor asks of a store. Each docstring is the specification, as in `store/contract.py`.

Both methods look over all tenants, may be called by any number of replicas at once, and may be killed anywhere: the
next call goes on. Both do a bounded piece of work; what is left over comes with the next call.
"""

from datetime import timedelta
from typing import Protocol


class Retention(Protocol):
    async def trim(self, *, keep: timedelta, pause: timedelta, limit: int) -> int:
        """Trim the logs of at most `limit` sessions that nobody looked at for `pause`; how many events are gone.

        An event is trimmed once it was stored more than `keep` ago by the database's clock, with all before it, unless
        it or one before it belongs to a turn that has not ended. First `compacted_to` is stored, on a majority; only
        then are the events up to it deleted, but for the kinds in COPIED, which a conversation is made of: models,
        ListMessages, restorations and forks need them. Of a deleted session nothing is trimmed. A call that was
        stopped, and goes on when the id is a new session's, changes nothing of that one.
        """
        ...

    async def purge(self, *, after: timedelta, limit: int) -> int:
        """Remove at most `limit` sessions that were deleted more than `after` ago; how many are gone for good.

        And at most as many forks that were begun 72 h ago and never finished: as long as a request's record is kept.
        The next try of such a fork begins anew.

        A session is marked first: from then on nothing can be written to it, and it counts as absent even to those who
        ask for deleted ones. Its id is free for a new session only when nothing of the old one is left.
        """
        ...
