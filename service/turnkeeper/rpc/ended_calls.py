"""Lets go of what a call that has ended with an error would keep.

gRPC keeps the error that ended a call with the call, and the error's frames hold the call: each such call would stay,
with all its objects, until the next search for cycles.
"""

from typing import Any

from grpc import aio

from turnkeeper.rpc.context import Context, Run


def without_frames(run: Run) -> Run:
    """Returns `run` such that the errors that end its calls have no frames afterwards."""

    async def forgetting(request: object, context: Context) -> Any:
        try:
            return await run(request, context)
        except aio.AbortError as error:
            ended: BaseException | None = error
            while ended is not None:
                ended.__traceback__ = None
                ended.__context__, ended = None, ended.__context__
            return None  # gRPC knows how the call has ended; to raise the error again would add a frame

    return forgetting
