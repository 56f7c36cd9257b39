"""`make chaos-takeover`: kills and freezes the owners of turns, and measures how soon another one goes on."""
