"""Runs several server processes on one port, and links each of them to the supervisor. Serves no call itself."""
