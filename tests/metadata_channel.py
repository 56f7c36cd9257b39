"""A channel whose calls all carry some metadata, such as a token."""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message
from grpc import aio


class MetadataChannel:
    """Passes everything on to a channel, and adds metadata to its calls."""

    def __init__(
        self,
        channel: aio.Channel,
        metadata: Sequence[tuple[str, str]],
        *,
        prepare: Callable[[Message], None] = lambda _: None,
    ) -> None:
        """`prepare` is called with each request before it is sent."""
        self._channel = channel
        self._prepare = prepare
        self._metadata = tuple(metadata)
        self.unary_unary = self._adding(channel.unary_unary)
        self.unary_stream = self._adding(channel.unary_stream)
        self.stream_unary = self._adding(channel.stream_unary)
        self.stream_stream = self._adding(channel.stream_stream)

    def __getattr__(self, name: str) -> Any:
        """Returns the channel's own attribute."""
        return getattr(self._channel, name)

    def _adding(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def of_path(*arguments: Any, **options: Any) -> Callable[..., Any]:
            inner = method(*arguments, **options)

            def call(*requests: Any, metadata: Any = None, **more: Any) -> Any:
                for request in requests:
                    if isinstance(request, Message):
                        self._prepare(request)
                return inner(*requests, metadata=(*self._metadata, *(metadata or ())), **more)

            return call

        return of_path
