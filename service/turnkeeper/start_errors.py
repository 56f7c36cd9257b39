"""Errors that stop the start of a server. Imports nothing, because the supervisor needs them and must stay small."""


class SettingError(Exception):
    """A setting has a value that it cannot have. The message names where the value stands, and what it can be."""


class NameTaken(Exception):
    """Another process runs under this replica's name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"a replica named {name} runs on this database already, its heartbeat has just moved: stop that one, or "
            "choose another --replica"
        )


class PortTaken(Exception):
    """The address cannot be listened on."""

    def __init__(self, address: str) -> None:
        super().__init__(
            f"{address} cannot be listened on: another program has it. Stop that one, or choose another --port."
        )
