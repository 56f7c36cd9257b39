"""Places are shared by connections: each has half at most, and the one with the fewest is the next."""

import asyncio
from collections.abc import Callable

import pytest

from tests.processes import until
from turnkeeper.rpc.places import KEPT_FREE, Places


class Shared:
    """Places, and the connections whose calls were given up."""

    def __init__(self, count: int, *, line: int = 100, pace: float = 60.0) -> None:
        self.given_up: list[str] = []
        self.old: list[str] = []
        self.places = Places(count, line=line, give_up=self._give_up, pace=pace)

    def fill(self, peer: str) -> int:
        count = 0
        while self.places.try_take(peer):
            count += 1
        return count

    async def join(self, peer: str, *, seconds: float = 60.0) -> "asyncio.Task[bool]":
        """Returns a call in line."""
        task = asyncio.ensure_future(self.places.take_in_line(peer, seconds=seconds))
        await asyncio.sleep(0)
        return task

    def _give_up(self, is_of: Callable[[str], bool]) -> bool:
        for peer in filter(is_of, self.old):
            self.old.remove(peer)
            self.given_up.append(peer)
            return True
        return False


async def ended(*tasks: "asyncio.Task[bool]") -> list[bool]:
    return await asyncio.wait_for(asyncio.gather(*tasks), 5)


async def test_one_connection_has_half_of_the_places() -> None:
    shared = Shared(6)
    assert [shared.fill(peer) for peer in "abc"] == [3, 3, 0]


async def test_some_places_are_kept_free_for_connections_whose_calls_were_in_time() -> None:
    shared = Shared(2 * KEPT_FREE)
    for peer, is_late in (("known", False), ("late", True)):
        assert shared.places.try_take(peer)
        shared.places.free(peer, is_late=is_late)
    assert sum(shared.fill(peer) for peer in ("a", "b", "late")) == 2 * KEPT_FREE - 2
    waiting = await shared.join("new")
    assert shared.fill("known") == 2
    for _ in range(2):
        shared.places.free("known")
    await asyncio.sleep(0)
    assert not waiting.done()
    shared.places.free("a")
    assert await ended(waiting) == [True]


async def test_the_only_place_is_anybodys() -> None:
    assert Shared(1).fill("a") == 1


async def test_a_free_place_is_that_of_the_connection_with_the_fewest() -> None:
    shared = Shared(4)
    assert [shared.fill("a"), shared.fill("b")] == [2, 2]
    lines = [await shared.join(peer) for peer in ("a", "b", "c", "c")]
    shared.places.free("a")
    assert await ended(lines[2]) == [True]
    shared.places.free("b")
    assert await ended(lines[0]) == [True]
    shared.places.free("c")
    assert await ended(lines[3]) == [True]
    assert not lines[1].done()
    lines[1].cancel()


async def test_connections_that_hold_places_for_long_have_them_by_turns_and_others_come_first() -> None:
    shared = Shared(2)
    for peer, is_late in (("late", True), ("known", False), ("late again", True)):
        assert shared.places.try_take(peer)
        shared.places.free(peer, is_late=is_late)
    assert [shared.fill("a"), shared.fill("b")] == [1, 1]
    lines = {peer: await shared.join(peer) for peer in ("late again", "late", "new", "known")}
    leaving = "a"
    for peer in ("known", "new", "late", "late again"):
        shared.places.free(leaving)
        assert await ended(lines[peer]) == [True]
        leaving = peer


async def test_if_the_calls_of_those_with_the_most_are_young_those_that_were_late_before_give_one_up() -> None:
    shared = Shared(6)
    assert shared.fill("late") == 3
    shared.places.free("late", is_late=True)
    shared.places.free("late")
    assert shared.fill("young") == 3
    assert shared.places.try_take("slow")
    assert shared.places.try_take("third")
    shared.old = ["slow", "late"]
    waiting = await shared.join("new")
    assert shared.given_up == ["late"]
    waiting.cancel()


async def test_a_connection_whose_calls_were_in_time_is_the_last_to_give_one_up() -> None:
    shared = Shared(6)
    assert shared.places.try_take("known")
    shared.places.free("known", is_late=False)
    assert all(shared.places.try_take(peer) for peer in ("known", "a", "b", "c", "d", "e"))
    shared.old = ["known", "a"]
    waiting = [await shared.join(peer) for peer in ("f", "g")]
    assert shared.given_up == ["a", "known"]
    for call in waiting:
        call.cancel()


async def test_a_connection_that_has_its_share_leaves_the_place_to_those_behind_it() -> None:
    shared = Shared(4)
    assert shared.fill("a") == 2
    waiting = await shared.join("a")
    assert shared.fill("b") == 2
    shared.places.free("b")
    await asyncio.sleep(0)
    assert not waiting.done()
    shared.places.free("a")
    assert await ended(waiting) == [True]


async def test_an_old_call_of_the_connection_with_the_most_places_is_given_up_for_another() -> None:
    shared = Shared(6)
    assert shared.fill("a") == 3
    assert all(shared.places.try_take(peer) for peer in "bbc")
    shared.old = ["b", "a"]
    waiting = await shared.join("c")
    assert shared.given_up == ["a"]
    shared.places.free("a")
    assert await ended(waiting) == [True]


async def test_a_connection_that_has_its_share_gives_up_an_old_call_of_its_own() -> None:
    shared = Shared(4)
    assert [shared.fill("a"), shared.fill("b")] == [2, 2]
    shared.old = ["b", "a"]
    waiting = await shared.join("a")
    assert shared.given_up == ["a"]
    waiting.cancel()


async def test_calls_that_become_old_are_given_up_for_those_in_line_and_not_more() -> None:
    shared = Shared(4, pace=0.001)
    assert shared.fill("a") == 2
    waiting = await shared.join("a")
    shared.old = ["a", "a"]
    await until(lambda: bool(shared.given_up))
    await asyncio.sleep(0.02)  # ten further looks
    assert shared.given_up == ["a"]
    shared.places.free("a")
    assert await ended(waiting) == [True]


async def test_the_longest_line_gives_up_its_last_call_for_a_shorter_one() -> None:
    shared = Shared(2, line=3)
    assert [shared.fill("a"), shared.fill("b")] == [1, 1]
    line = [await shared.join("a") for _ in range(3)]
    assert await ended(await shared.join("a")) == [False]
    other = await shared.join("b")
    assert await ended(line[2]) == [False]
    shared.places.free("b")
    shared.places.free("a")
    assert await ended(other, line[0]) == [True, True]
    line[1].cancel()


async def test_a_call_that_waits_too_long_leaves_the_line() -> None:
    shared = Shared(2)
    assert shared.fill("a") == 1
    assert await ended(await shared.join("a", seconds=0.001)) == [False]
    shared.places.free("a")
    assert shared.fill("a") == 1


@pytest.mark.parametrize("is_given", [True, False])
async def test_a_call_that_is_cancelled_in_line_holds_no_place(is_given: bool) -> None:
    shared = Shared(2)
    assert shared.fill("a") == 1
    waiting = await shared.join("a")
    if is_given:
        shared.places.free("a")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    if not is_given:
        shared.places.free("a")
    assert shared.fill("a") == 1
