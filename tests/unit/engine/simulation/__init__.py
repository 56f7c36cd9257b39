"""A service without a database and without a clock: real replicas on the store in memory, on a loop in virtual time."""
