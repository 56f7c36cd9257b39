"""The scripted model's replies of tests that need one call that a person must approve."""

from typing import Final

ASK: Final = r"""
[[reply]]
match = '^ask (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = "^ask"
after_tools = 1
text = "Asked."

[[reply]]
text = "You said: {user}"
"""
