"""How a process is made to shut down: by SIGTERM, or by a person with Ctrl-C."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator

from turnkeeper import interrupts


class ShutdownRequest:
    """Whether the process is to shut down, and whether a person waits for its end."""

    def __init__(self) -> None:
        self.interrupted = False
        """True after SIGINT, which Ctrl-C sends: what is done for a load balancer alone is left out."""
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Requests the shutdown. Repeating it changes nothing."""
        self._requested.set()

    def interrupt(self) -> None:
        """Requests the shutdown for a person who waits for it."""
        self.interrupted = True
        self._requested.set()

    async def wait(self) -> None:
        """Returns once the shutdown is requested."""
        await self._requested.wait()

    @contextlib.contextmanager
    def by_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT request it while the block runs. After the block, either of them ends the process."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.request)
        loop.add_signal_handler(signal.SIGINT, self.interrupt)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
                interrupts.by_default(number)
