"""`turnkeeper dev`: database, model and server on one screen, with the files of agents and tools read anew."""
