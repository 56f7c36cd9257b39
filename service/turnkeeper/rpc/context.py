"""The types of a call: its context, its method, its responses."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from grpc import aio

Context = aio.ServicerContext[Any, Any]
"""What gRPC gives to a method beside the request."""
Run = Callable[[Any, Context], Awaitable[Any]]
"""A method that is called with a request and its context."""
Responses = AsyncGenerator[Any, None]
"""What a method of a stream returns."""
UNREADABLE = "The request's bytes are not a message of this method; check your stubs."
"""The message of a call whose request cannot be parsed."""
