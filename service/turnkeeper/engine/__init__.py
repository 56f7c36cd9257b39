"""The verbs: what may happen to a session, and the loop that makes turns go on."""
