"""Where sessions, turns and their events are kept."""
