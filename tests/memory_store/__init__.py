"""A store in memory: a second implementation of the store's contract, for tests that need no database."""
