"""To be said in one line: what is in here, and what is not."""
