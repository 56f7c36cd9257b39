"""Tells a failure of work that a tool, a model or a caller provides from the end of the task that runs it.

Such work may raise anything, also what `except Exception` does not catch: the panic of a Rust library, GeneratorExit,
KeyboardInterrupt and SystemExit. A task passes the last two on to the event loop, where they end the process.
"""

import asyncio


def ends_task(error: BaseException) -> bool:
    """Returns True if the caller must raise the error again: its task is cancelled, or the event loop has ended.

    Any other error is a failure of the work that raised it; so is a CancelledError that leaked from the work.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def ends_process(error: BaseException) -> bool:
    """Returns True if code without a task must raise the error again: the process or the caller is ending.

    Any other error is a failure of the work that raised it, also if it is not an Exception, as a panic is not.
    """
    return isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit)
