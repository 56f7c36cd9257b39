"""Records the requests to the scripted model: it keeps the latest only, so they are fetched all the time."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx2

PROMPTS: Final = "model.jsonl"
EVERY: Final = 2.0
"""Seconds."""


class Prompts:
    """Writes the messages of each request to the model into a file of `folder`, a JSON line each."""

    def __init__(self, base_url: str, folder: Path) -> None:
        self._url = base_url.removesuffix("/v1") + "/requests"
        self._file = folder / PROMPTS
        self.count = 0

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Records the requests of the block, up to its end."""
        async with httpx2.AsyncClient(timeout=10) as client:
            task = asyncio.create_task(self._run(client))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await self._fetch(client)

    async def _run(self, client: httpx2.AsyncClient) -> None:
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                await self._fetch(client)
            await asyncio.sleep(EVERY)

    async def _fetch(self, client: httpx2.AsyncClient) -> None:
        """Appends the new requests to the file; those that fail to be written are fetched again."""
        requests = (await client.get(self._url)).json()
        new = [request for request in requests if request["number"] > self.count]
        with self._file.open("a", encoding="utf-8") as file:
            for request in new:
                line = {"number": request["number"], "messages": request["body"]["messages"]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.count = max([self.count, *(request["number"] for request in new)])
