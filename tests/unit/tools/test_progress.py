"""The lines of a call: few and short, from any thread."""

import asyncio
import threading

from tests.processes import until
from turnkeeper.tools.progress import LONGEST, CallProgress

NEVER = 3600.0
"""Seconds between two lines: only the first is shown."""


async def test_a_flood_of_lines_shows_the_first_alone_until_the_interval_is_over() -> None:
    shown: list[str] = []
    progress = CallProgress(shown.append, interval=NEVER)
    progress.report("first")
    await until(lambda: shown == ["first"])
    for number in range(10_000):
        progress.report(f"{number}")
    await asyncio.sleep(0)
    assert shown == ["first"]


async def test_the_newest_line_is_shown_after_the_interval() -> None:
    shown: list[str] = []
    progress = CallProgress(shown.append, interval=0.01)
    for number in range(100):
        progress.report(f"{number}")
    await until(lambda: shown == ["99"])
    progress.report("later")
    progress.report("latest")
    await until(lambda: shown[-1] == "latest")
    assert len(shown) <= 3


async def test_lines_from_many_threads_are_shown_in_the_event_loop() -> None:
    shown: list[tuple[str, int]] = []
    progress = CallProgress(lambda line: shown.append((line, threading.get_ident())), interval=0.001)
    threads = [threading.Thread(target=progress.report, args=(f"{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
    progress.report("last")
    await until(lambda: bool(shown) and shown[-1][0] == "last")
    assert {thread for _, thread in shown} == {threading.get_ident()}


async def test_a_line_is_short_and_has_no_controls() -> None:
    shown: list[str] = []
    CallProgress(shown.append).report("a\n\tb\x1b[2J \ud83d" + "x" * 10_000)
    await until(lambda: bool(shown))
    assert shown[0].startswith(r"a b\u001b[2J \ud83dxxx")
    assert len(shown[0]) == LONGEST
    shown[0].encode()


async def test_nothing_is_shown_of_a_call_that_has_ended() -> None:
    shown: list[str] = []
    progress = CallProgress(shown.append)
    progress.report("too late")
    progress.close()
    progress.report("later still")
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(done.set_result, None)
    await done
    assert not shown


def test_a_line_for_a_loop_that_is_closed_goes_nowhere() -> None:
    async def progress_of_a_loop() -> CallProgress:
        return CallProgress(lambda _: None)

    asyncio.run(progress_of_a_loop()).report("too late")
