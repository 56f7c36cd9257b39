"""A channel whose calls all carry some metadata, such as a token."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
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
        instead: Mapping[str, Sequence[tuple[str, str]]] = MappingProxyType({}),
    ) -> None:
        """`prepare` is called with each request before it is sent. `instead`: other metadata, by the method's name."""
        self._channel = channel
        self._prepare = prepare
        self._metadata = tuple(metadata)
        self._instead = instead
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
            path: str = arguments[0] if arguments else options["method"]
            added = tuple(self._instead.get(path.rpartition("/")[2], self._metadata))

            def call(*requests: Any, metadata: Any = None, **more: Any) -> Any:
                for request in requests:
                    if isinstance(request, Message):
                        self._prepare(request)
                return inner(*requests, metadata=(*added, *(metadata or ())), **more)

            return call

        return of_path
