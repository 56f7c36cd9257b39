"""Lets go of what a call that has ended with an error would keep.

gRPC keeps the error that ended a call with the call, and the error's frames hold the call: each such call would stay,
with all its objects, until the next search for cycles.
"""

from grpc import aio


def forget_frames(error: aio.AbortError) -> None:
    """Takes the frames from the error that ended a call, and from those behind it.

    The caller does not raise it again, which would add a frame: gRPC knows how the call has ended.
    """
    ended: BaseException | None = error
    while ended is not None:
        ended.__traceback__ = None
        ended.__context__, ended = None, ended.__context__
