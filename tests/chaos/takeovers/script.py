"""The agent, and what its model answers, by the first word of a message."""

from typing import Final

AGENTS: Final = """
[[agent]]
name = "worker"
tools = ["hold_*"]
[agent.limits]
tool_timeout = "3m"
[[agent.policy]]
tool = "*"
action = "auto"
"""
TEXT: Final = "An answer that takes its time, so that its owner is lost in the midst of it. " * 2
"""Some 15 s with its pauses: longer than a lease, and than the owners of the run are frozen."""
SCRIPT: Final = f"""
[[reply]]
match = '^call (?P<label>\\S+)'
tool_calls = [{{ name = "hold_irreversible", arguments = {{ label = "{{label}}" }} }}]

[[reply]]
match = '^again (?P<label>\\S+)'
tool_calls = [{{ name = "hold_idempotent", arguments = {{ label = "{{label}}" }} }}]

[[reply]]
match = '^tell (?P<label>\\S+)'
text = "{TEXT}"
chunk = 1
delay = "100ms"

[[reply]]
text = "Told: {{tool_result}}"
"""
KINDS: Final = ("call", "again", "tell")
"""What a turn is in the midst of: a call that must not run twice, one that may, the model's answer."""
