"""Policies: compiled rules, what they decide on a tool call, and the tools that an operator denies for a while."""
