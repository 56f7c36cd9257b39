"""One function a promise: it says what would falsify it, and looks for exactly that in a history."""
