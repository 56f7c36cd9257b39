"""Memory that is free goes back to the system, though what was allocated last is still in use."""

import asyncio
import ctypes
import os
from typing import Any

import pytest

from tests.processes import resident, until
from turnkeeper.engine.replica.memory_trim import MemoryTrim

SIZE, COUNT = 64 << 10, 1000
"""Bytes of a block: malloc maps larger ones apart, and gives those back by itself."""
LIBRARY: Any = ctypes.CDLL(None)


@pytest.mark.skipif(not hasattr(LIBRARY, "malloc_trim"), reason="the allocator of this system cannot trim")
async def test_free_memory_goes_back_to_the_system() -> None:
    LIBRARY.malloc.restype = ctypes.c_void_p
    blocks = [ctypes.c_void_p(LIBRARY.malloc(ctypes.c_size_t(SIZE))) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    *freed, last = blocks
    for block in freed:
        LIBRARY.free(block)
    held = resident(os.getpid())
    trimming = asyncio.create_task(MemoryTrim(interval=0.001).run())
    await until(lambda: resident(os.getpid()) < held - SIZE * COUNT * 3 // 4)
    trimming.cancel()
    LIBRARY.free(last)
