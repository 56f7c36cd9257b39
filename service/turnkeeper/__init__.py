"""Turnkeeper keeps the turns of agent conversations: a gRPC service over MongoDB."""


def __getattr__(name: str) -> str:
    """Returns `__version__`, the installed release: looked up when it is read, because that takes a while."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415

    return version("turnkeeper")
