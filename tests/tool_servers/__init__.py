"""Tool servers that tests start: the helpers' samples, and broken ones."""
