"""The agents of the demo: the service's samples, with a scripted model where tools are called."""

from pathlib import Path

from turnkeeper import agents_file

OWN = Path(__file__).with_name("agents.toml")
_NO_KEY = "TURNKEEPER_NO_KEY"
"""A variable that is never set: no real key is sent to a scripted model."""


def samples(*, clerk_at: str) -> str:
    """Returns the sample agents (TOML). The clerk's model is the one at `clerk_at`: it must call tools."""
    return _served_by(agents_file.SAMPLES.read_text(encoding="utf-8"), "clerk", clerk_at)


def demo(*, scripted: str, needs_approval: bool) -> str:
    """Returns the demo's agents. Without `needs_approval` the clerk's policy lets every tool run at once."""
    sample = samples(clerk_at=scripted)
    policy = sample if needs_approval else _replaced(sample, 'action = "approve"', 'action = "auto"')
    return policy + _served_by(OWN.read_text(encoding="utf-8"), "writer", scripted)


def _served_by(agents: str, name: str, url: str) -> str:
    named = f'name = "{name}"\n'
    return _replaced(agents, named, f'{named}base_url = "{url}"\napi_key_env = "{_NO_KEY}"\n')


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"the agents file must have {old.strip()} once")
    return text.replace(old, new)
