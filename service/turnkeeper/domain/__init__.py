"""The values and rules that every other room uses: sessions, turns, tool calls, approvals, events.

No I/O, no clock, no randomness, no vendor's package: what a rule needs is a parameter.
"""
