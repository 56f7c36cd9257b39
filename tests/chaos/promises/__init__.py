"""One function for each promise: it looks in a history for what would falsify the promise."""
